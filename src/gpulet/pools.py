"""Pools: counts of gpulets by size, each for one model or for several, and what they can carry.

Requests that bring rows of their own are not merged, so what a pool carries depends on which sizes hold which requests
in time: a linear program, exact for a dispatcher that never wastes a gpulet.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from highspy import Highs
from highspy.highs import highs_linear_expression, highs_var

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Mechanism, Size
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import NEVER, SECOND, Duration, to_ms

_ROUNDING = 1e-9


class Worth(Protocol):
    """How many times the demand a plan holds when it is simulated; 0 when it does not hold `least` times."""

    def __call__(self, problem: Problem, plan: Plan, *, least: float) -> float:
        """The factor on all rates."""
        ...


@dataclass(frozen=True, slots=True)
class Group:
    """`count` gpulets of one size that take requests of `models`, each up to so many rows."""

    size: Size
    models: Mapping[str, int]
    count: int


def group(problem: Problem, size: Size, models: Iterable[str], count: int) -> Group:
    """Gpulets of one size that take what they can hold of the requests of these models."""
    profile = problem.profile
    tops = {name: min(problem.rows_of(name).largest, profile.max_batch(name, size.sms)) for name in models}
    return Group(size, tops, count)


def groups_in(plan: Plan) -> tuple[Group, ...]:
    """A pool's gpulets by size and models."""
    found = Counter((g.size, tuple((turn.model, turn.batch) for turn in g.turns)) for g in plan.gpulets)
    return tuple(Group(size, dict(tops), count) for (size, tops), count in found.items())


def counted(groups: Sequence[Group]) -> dict[Size, int]:
    """Gpulets by size."""
    counts: dict[Size, int] = {}
    for group in groups:
        counts[group.size] = counts.get(group.size, 0) + group.count
    return counts


def latencies(problem: Problem, model: str, size: Size) -> Sequence[Duration]:
    """Latency by rows of a model's requests on a size, as far as it can hold them."""
    return problem.profile.curve(model, size.sms)[: problem.rows_of(model).largest]


def usable(problem: Problem, model: str, sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Of all sizes of a device those that a model's profile tells of: nobody knows how slow it is below the smallest.

    MIG types that were not measured count only where none was: their bandwidth does not lie between their neighbours'.
    """
    measured = problem.profile.sizes(model)
    exact = tuple(size for size in sizes if size.sms in measured)
    if exact and problem.devices[0].mechanism is Mechanism.MIG:
        return exact
    return tuple(size for size in sizes if size.sms >= measured[0])


def soonest(problem: Problem, model: str, rows: int, sizes: Sequence[Size]) -> Duration:
    """The shortest run of a request of `rows` rows on any of the sizes; `NEVER` where none holds it."""
    smallest = problem.profile.sizes(model)[0]
    curves = (latencies(problem, model, size) for size in sizes if size.sms >= smallest)
    return min((curve[rows - 1] for curve in curves if len(curve) >= rows), default=NEVER)


def uncovered(problem: Problem, model: str, sizes: Sequence[Size]) -> int:
    """The fewest rows of a request that none of the sizes runs within the objective; 0 when every request is covered."""
    slo, rows = problem.models[model].slo, problem.rows_of(model)
    return next((b for b, _ in rows.likely if soonest(problem, model, b, sizes) > slo), 0)


def carried(problem: Problem, groups: Sequence[Group], *, spared: float = 0.0) -> float:
    """How many times the rates that are asked the groups can carry at most, every request run once and in time.

    Infinite without rates. A bound on every dispatcher that does not merge requests: gpulets are never idle and requests split at will. `spared`
    is the part of each model's requests that need not be run at all.
    """
    return inf if problem.is_idle else _Flow(problem, groups, spared).factor()


class _Flow:
    """Maximise f: f x rate x weight of each (model, rows) is spread over groups, none busier than it has gpulets."""

    def __init__(self, problem: Problem, groups: Sequence[Group], spared: float) -> None:
        self._problem = problem
        self._groups = groups
        self._highs = Highs()  # type: ignore[no-untyped-call] # highspy has no annotation there
        self._highs.silent()
        self._factor = self._highs.addVariable(lb=0, obj=-1)
        self._busy = [highs_linear_expression() for _ in groups]
        for name in problem.models:
            if problem.asked_of(name) > 0:
                self._spread(name, spared)
        for group, used in zip(groups, self._busy, strict=True):
            self._highs.addConstr(used <= group.count)

    def factor(self) -> float:
        """The largest f."""
        self._highs.minimize()
        return max(0.0, float(self._highs.getSolution().col_value[0]))

    def _spread(self, name: str, spared: float) -> None:
        """All requests of a model run somewhere, but for the spared part."""
        rate = self._problem.asked_of(name)
        forgone = []
        for b, weight in self._problem.rows_of(name).likely:
            flows = [self._flow(place, ran) for place, ran in self._in_time(name, b)]
            if spared:
                forgone.append(self._highs.addVariable(lb=0))
            self._highs.addConstr(sum([*flows, *forgone[-1:]]) - self._factor * (rate * weight) == 0)
        if forgone:
            self._highs.addConstr(sum(forgone) - self._factor * (rate * spared) <= 0)

    def _in_time(self, name: str, rows: int) -> Iterator[tuple[int, Duration]]:
        """The groups, by place, that run a request of so many rows within its objective, and how long they take."""
        for place, group in enumerate(self._groups):
            curve = latencies(self._problem, name, group.size) if name in group.models else ()
            if rows <= len(curve) and curve[rows - 1] <= self._problem.models[name].slo:
                yield place, curve[rows - 1]

    def _flow(self, place: int, ran: Duration) -> highs_var:
        flow: highs_var = self._highs.addVariable(lb=0)
        self._busy[place] += flow * (ran / SECOND)
        return flow


def pool_plan(problem: Problem, cutter: Cutter, groups: Sequence[Group]) -> Plan | Infeasible:
    """The groups placed on the devices, with what they promise; or why they cannot keep the promise.

    Of several devices the fullest layouts come first. `Infeasible.partial` is the pool all the same: researchers compare
    it. Raises `PlanError` where the counts do not fit the devices.
    """
    counts = counted(groups)
    free = {size: [p for p in cutter.pack(counts) if p[1].size == size] for size in counts}
    gpulets: list[Gpulet] = []
    for group in groups:
        turns = tuple(_turns(problem, group, groups))
        duty = sum(turn.latency for turn in turns)
        for _ in range(group.count):
            device, placement = free[group.size].pop(0)
            gpulets.append(Gpulet(0, device, group.size, placement.offset, duty, turns))
    gpulets.sort(key=lambda g: (g.device, g.offset))
    plan = Plan(problem.devices, tuple(replace(g, id=place) for place, g in enumerate(gpulets)))
    factor = carried(problem, groups)
    plan = replace(plan, promises={name: _promise(problem, name, groups, factor) for name in problem.models})
    return _refusal(problem, plan, groups, factor) or problem.within_memory(plan)


def _turns(problem: Problem, group: Group, groups: Sequence[Group]) -> list[Turn]:
    """Each model's largest requests here, and an equal part of its demand by SMs."""
    turns = []
    for name, top in group.models.items():
        sms = sum(g.size.sms * g.count for g in groups if name in g.models)
        rate = problem.demand.get(name, 0.0) * group.size.sms / sms
        turns.append(Turn(name, top, rate, problem.profile.latency(name, group.size.sms, top)))
    return turns


def _promise(problem: Problem, name: str, groups: Sequence[Group], factor: float) -> Promise:
    sizes = [group.size for group in groups if name in group.models and group.count]
    rows, demand = problem.rows_of(name), problem.demand.get(name, 0.0)
    worst = max(soonest(problem, name, b, sizes) for b, _ in rows.likely)
    return Promise(demand, factor * demand if demand else 0.0, worst, problem.models[name].slo)


def _refusal(problem: Problem, plan: Plan, groups: Sequence[Group], factor: float) -> Infeasible | None:
    for name, model in problem.models.items():
        sizes = [group.size for group in groups if name in group.models and group.count]
        missed = uncovered(problem, name, sizes)
        if missed:
            fastest = soonest(problem, name, missed, sizes)
            takes = "fits none of the sizes" if fastest == NEVER else f"takes {to_ms(fastest):g} ms at best"
            constraint = f"a request of {missed} rows {takes}; its SLO is {to_ms(model.slo):g} ms"
            return Infeasible(name, constraint, "raise its SLO", {name: problem.demand.get(name, 0.0)}, plan)
    if factor < 1 - _ROUNDING:
        name = max(problem.models, key=lambda n: problem.demand.get(n, 0.0))
        missing = {n: rate * (1 - factor) for n, rate in problem.demand.items()}
        rate = problem.demand.get(name, 0.0)
        constraint = f"{len(plan.gpulets)} gpulets carry {factor * rate:.1f} of {rate:.1f} rows/s at most"
        nearest = f"lower its rate by {missing[name]:.1f}/s, or add a device"
        return Infeasible(name, constraint, nearest, missing, plan)
    return None
