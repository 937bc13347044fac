"""gpu-lets as its artifact really plans (casys-kaist/glet, read from its behaviour; ATC 2022 in another order).

Models ascending by rate x SLO. Each: estimate its parts on an empty fleet (A), fit them onto free parts (B, C), else
readjust (D), pack residues (E), share in time as the last resort (F); with interference, accept a model that keeps 85 %
of its rate and place the others once more (G). Every margin is a parameter (`Margins`).

The same code without partitions is the artifact's `sbp` (temporal sharing only), and with the smallest sufficient
sizes and no temporal sharing its `greedy` (guided self-tuning), as in the artifact.

Departures: promises are reckoned without the latency ratio and with the demand that was asked, and a plan that does
not keep them is refused, where the artifact accepts it (a rate within the slack, the 85 % rule); the rate's quantile
counts P(0) too, so that it exists for every rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.planners.glet.board import WHOLE, Board, Part, sizes_by_share
from gpulet.planners.glet.estimate import Saturation, efficient_share, estimate, estimate_greedy, saturation
from gpulet.planners.glet.margins import NONE, Margins
from gpulet.planners.glet.placing import allocate, fits, merge_residues, readjust
from gpulet.planners.glet.sharing import share_in_time
from gpulet.planners.glet.wanted import Wanted
from gpulet.units import SECOND, to_ms

__all__ = ["NONE", "Cuts", "Margins", "Style", "efficient_share", "glet", "saturation_table"]

Cuts = Sequence[Sequence[int]]
"""The shares (percent) into which each device is cut beforehand."""


class Style(StrEnum):
    """Which of the artifact's three schedulers."""

    GLET = "glet"
    SBP = "sbp"
    GREEDY = "greedy"


_DEFAULT = Margins()


def glet(
    problem: Problem,
    *,
    style: Style = Style.GLET,
    margins: Margins = _DEFAULT,
    with_interference: bool = False,
    cuts: Cuts = (),
) -> Plan | Infeasible:
    """Plan as the artifact does. All or nothing. `cuts`: no further cutting (its `--full_search`)."""
    planning = _Planning(problem, style, margins, with_interference=with_interference, cuts=cuts)
    failed = planning.run()
    return planning.outcome(failed)


def saturation_table(problem: Problem, model: Model, margins: Margins = _DEFAULT) -> Mapping[int, Saturation]:
    """Batch and rows/s by share in percent (specification of gpu-lets, section 5)."""
    return saturation(Board(problem, margins, _shares(problem, Style.GLET), None, ()), model)


def _shares(problem: Problem, style: Style) -> tuple[int, ...]:
    """Sizes that leave a legal rest, and the whole device; every model must have been measured there."""
    device = problem.devices[0]
    if device.mechanism is Mechanism.MIG:
        msg = f"device {device.index}: gpu-lets cuts mps, green, cpu and whole devices, not mig"
        raise PlanError(msg)
    smallest = max(problem.profile.sizes(name)[0] for name in problem.models)
    usable = {share for share, size in sizes_by_share(device).items() if size.sms >= smallest}
    paired = {share for share in usable if WHOLE - share in usable and _fit_together(device, share)}
    return (WHOLE,) if style is Style.SBP else (*sorted(paired), WHOLE)


def _fit_together(device: Device, share: int) -> bool:
    """Whether a share and the rest of 100 % really fit on the device, which rounding may hide."""
    sizes = sizes_by_share(device)
    return device.length(sizes[share]) + device.length(sizes[WHOLE - share]) <= device.room


@dataclass(frozen=True, slots=True)
class _Failure:
    model: str
    left: float


class _Planning:
    """One run of the artifact's scheduler."""

    def __init__(
        self, problem: Problem, style: Style, margins: Margins, *, with_interference: bool, cuts: Cuts
    ) -> None:
        self._problem = problem
        self._style = style
        self._margins = margins
        self._rates = {n: margins.planned_rate(problem.demand[n]) for n in problem.models if problem.demand.get(n)}
        model = problem.needs_interference() if with_interference else None
        self._board = Board(problem, margins, _shares(problem, style), model, cuts)
        self._tables = {n: saturation(self._board, problem.models[n]) for n in self._rates}

    def run(self) -> _Failure | None:
        """Place every model; who could not be placed, if anybody."""
        names = list(self._rates)
        again: set[str] = set()
        while names:
            for name in sorted(names, key=self._order):
                left = self._add(name)
                if left is not None:
                    return _Failure(name, left)
            names = self._starved(names)
            if again & set(names):
                name = next(n for n in names if n in again)
                return _Failure(name, self._rates[name] - self._throughput(name))
            again |= set(names)
        return None

    def _order(self, name: str) -> tuple[float, int]:
        """Ascending rate x SLO; of equals the later model first, as in the artifact."""
        model = self._problem.models[name]
        return self._rates[name] * model.slo, -list(self._problem.models).index(name)

    def _starved(self, names: Sequence[str]) -> list[str]:
        """Stage G: with interference, who got less than the accepted part."""
        if not self._board.interference:
            return []
        return [n for n in names if self._throughput(n) < self._rates[n] * self._margins.acceptance]

    def _throughput(self, name: str) -> float:
        return sum(t.throughput for part in self._board.parts() for t in part.tenants if t.model.name == name)

    def _add(self, name: str) -> float | None:
        """Place one model; the rows/s that are left over, or None when it is served."""
        board, model = self._board, self._problem.models[name]
        table, guess = self._tables[name], estimate_greedy if self._style is Style.GREEDY else estimate
        task = Wanted(model, self._rates[name], table, lambda rate: guess(board, model, rate, table))
        mine = [p for p in board.parts() if any(t.model is model for t in p.tenants)]
        if mine:
            given = self._evict(model, mine)
        else:
            wanted = sorted(task.estimate(task.rate), key=lambda part: -part.share)
            if fits(board, wanted) and allocate(board, wanted, task):
                return None
            given = board.empty()
        readjust(board, given, task)
        if merge_residues(board, task):
            return None
        is_shared = self._style is not Style.GREEDY and share_in_time(board, task, mine)
        return None if is_shared else task.rate + task.lost

    def _evict(self, model: Model, mine: list[Part]) -> list[Part]:
        """Take a model off its parts before it is placed once more; the parts that are free then."""
        for part in mine:
            part.tenants = [t for t in part.tenants if t.model is not model]
            runs = sum(self._board.latency_in(t.model, t.batch, part) for t in part.tenants)
            part.occupancy = runs / part.duty
        return self._board.empty()

    # result -----------------------------------------------------------------------------------------------------------

    def outcome(self, failed: _Failure | None) -> Plan | Infeasible:
        """The plan with what it really promises, or what stands in its way."""
        self._shrink_late_batches()
        plan = self._plan()
        if failed:
            return self._refusal(failed, plan)
        broken = plan.violations()
        if not broken:
            return plan
        short = {n: p.demand - p.throughput for n, p in plan.promises.items() if p.throughput < p.demand}
        late = {n: p.demand for n, p in plan.promises.items() if p.worst_latency > p.slo and n not in short}
        short |= late
        name = next(iter(short), next(iter(plan.promises)))
        return Infeasible(
            name, f"accepted by the artifact's margins, but {broken[0]}", "use fewer margins", short, plan
        )

    def _shrink_late_batches(self) -> None:
        """The artifact forgets some of what neighbours cost: a lone tenant's batch must still run twice in its objective."""
        for part in self._board.parts():
            for tenant in part.tenants if len(part.tenants) == 1 else ():
                while (
                    tenant.batch > 1
                    and 2 * self._board.bare_latency(tenant.model, tenant.batch, part) > tenant.model.slo
                ):
                    tenant.batch -= 1

    def _plan(self) -> Plan:
        gpulets: list[Gpulet] = []
        for parts in self._board.devices:
            offset = 0
            device = self._problem.devices[parts[0].device]
            for part in parts:
                size = self._board.size(part.share)
                if part.tenants:
                    gpulets.append(self._gpulet(len(gpulets), device, part, offset))
                offset += part.share if device.mechanism is Mechanism.MPS else size.sms
        promises = {name: self._promise(model) for name, model in self._problem.models.items()}
        return Plan(self._problem.devices, tuple(gpulets), promises=promises)

    def _gpulet(self, place: int, device: Device, part: Part, offset: int) -> Gpulet:
        latencies = [round(self._board.bare_latency(t.model, t.batch, part)) for t in part.tenants]
        turns = [
            Turn(t.model.name, t.batch, t.throughput, latency)
            for t, latency in zip(part.tenants, latencies, strict=True)
        ]
        duty = max(round(self._cycle(part)), sum(latencies))
        return Gpulet(place, device.index, self._board.size(part.share), offset, duty, tuple(turns))

    def _cycle(self, part: Part) -> float:
        """The duty cycle, no longer than the objectives leave beside the runs (the artifact's residual slack, greedy)."""
        runs = sum(self._board.bare_latency(t.model, t.batch, part) for t in part.tenants)
        return min(part.duty, min(t.model.slo for t in part.tenants) - runs)

    def _promise(self, model: Model) -> Promise:
        """A part that is asked for more than planned goes round without idling: a batch of each tenant in every round."""
        throughput, worst = 0.0, 0.0
        for part in self._board.parts():
            latencies = [self._board.bare_latency(t.model, t.batch, part) for t in part.tenants]
            for tenant in part.tenants:
                if tenant.model is model:
                    throughput += tenant.batch * SECOND / sum(latencies)
                    worst = max(worst, max(self._cycle(part), sum(latencies)) + sum(latencies))
        return Promise(self._problem.demand.get(model.name, 0.0), throughput, round(worst), model.slo)

    def _refusal(self, failed: _Failure, plan: Plan) -> Infeasible:
        table = self._tables[failed.model]
        model = self._problem.models[failed.model]
        if 2 * self._board.latency(model, 1, WHOLE) > model.slo:
            constraint = f"no size runs even one row twice within its SLO of {to_ms(model.slo):g} ms"
            return Infeasible(failed.model, constraint, "raise its SLO", self._unserved(failed), plan)
        rate, count = self._rates[failed.model], len(self._problem.devices)
        constraint = f"{rate - failed.left:.1f} of {rate} rows/s (margins included) fit on {count} devices"
        best = max(entry.rate for entry in table.values())
        nearest = f"lower its rate by {failed.left:.1f}/s, or add a device (a whole one carries {best:.1f}/s)"
        return Infeasible(failed.model, constraint, nearest, self._unserved(failed), plan)

    def _unserved(self, failed: _Failure) -> dict[str, float]:
        """What failed, without its margins, and all of those that were not tried any more."""
        demand = self._problem.demand
        placed = {t.model.name for part in self._board.parts() for t in part.tenants}
        untried = {n: demand[n] for n in self._rates if n not in placed and n != failed.model}
        return {failed.model: min(failed.left, demand[failed.model]), **untried}
