"""Every model on every device, and no device cut: how Triton, Clipper and default MPS share GPUs.

A run wants all SMs, so runs that overlap slow each other: with k models per device in demand, and `copies` of each, the
plan counts on all of them running, each k x copies x (1 + contention x (k x copies - 1)) times slower. That is what
executors on `whole` devices do too (`Device.contention` is measured). None of those systems plans; that a demand beyond
it is refused is ours, and so is the promise. What a device is partitioned by is ignored.

With `batch` every batch has so many rows (fewer where a model cannot). Time to fill it is not counted: at low rates
requests of such a system are late, and no plan of it could help.
"""

from dataclasses import dataclass, replace

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.duty import Cycle, Share, saturated
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import SECOND, to_ms


def uncut(problem: Problem, *, copies: int = 1, batch: int = 0) -> Plan | Infeasible:
    """All models on all devices, `copies` of each a device, or why that does not carry the demand."""
    devices = tuple(replace(device, mechanism=Mechanism.WHOLE) for device in problem.devices)
    wanted = sum(problem.demand.get(name, 0.0) > 0 for name in problem.models)
    crowd = max(1, wanted) * copies
    homes = [_Home(problem, device, model, crowd, batch) for device in devices for model in problem.models.values()]
    homes = [home for home in homes for _ in range(copies)]
    carried = {name: sum(home.rate for home in homes if home.model.name == name) for name in problem.models}
    gpulets = tuple(home.gpulet(place, carried[home.model.name]) for place, home in enumerate(homes))
    plan = Plan(devices, gpulets, promises=_promises(problem, homes, carried))
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried[name]}
    return _refusal(problem, plan, missing, crowd) if missing else problem.within_memory(plan)


@dataclass(frozen=True, slots=True)
class _Home:
    """One model on one device, `crowd` runs at a time."""

    problem: Problem
    device: Device
    model: Model
    crowd: int
    batch: int

    @property
    def cycle(self) -> Cycle:
        """Back-to-back batches beside all others; a single row where nothing is in time."""
        sms = self.device.kind.sms
        slowdown = self.crowd * (1 + self.device.contention * (self.crowd - 1))
        curve = tuple(round(t * slowdown) for t in self.problem.profile.curve(self.model.name, sms))
        most = min(self.model.max_batch, len(curve))
        if self.batch:
            rows = min(self.batch, most)
            return Cycle(curve[rows - 1], (rows,), (curve[rows - 1],))
        found = saturated(Share(curve, self.model.slo, 0.0, most))
        return found if found.batches else Cycle(curve[0], (1,), (curve[0],))

    @property
    def rate(self) -> float:
        """Rows/s within the objective; 0 when it cannot be kept."""
        cycle = self.cycle
        return cycle.batches[0] * SECOND / cycle.duty if cycle.worst <= self.model.slo else 0.0

    def gpulet(self, place: int, carried: float) -> Gpulet:
        """All of the device; its part of the demand goes by what it carries."""
        demand, cycle = self.problem.demand.get(self.model.name, 0.0), self.cycle
        turn = Turn(self.model.name, cycle.batches[0], demand * self.rate / (carried or 1), cycle.duty)
        return Gpulet(place, self.device.index, self.device.sizes()[-1], 0, cycle.duty, (turn,))


def _promises(problem: Problem, homes: list[_Home], carried: dict[str, float]) -> dict[str, Promise]:
    """For what is in demand or can be carried: who only lives here promises nothing."""
    return {
        name: Promise(problem.demand.get(name, 0.0), rate, _worst(homes, name), problem.models[name].slo)
        for name, rate in carried.items()
        if rate or problem.demand.get(name, 0.0) > 0
    }


def _worst(homes: list[_Home], name: str) -> int:
    return max((home.cycle.worst for home in homes if home.model.name == name and home.rate), default=0)


def _refusal(problem: Problem, plan: Plan, missing: dict[str, float], crowd: int) -> Infeasible:
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    if left == demand:
        constraint = f"beside {crowd - 1} others no batch of it runs twice within its SLO of "
        constraint += f"{to_ms(problem.models[name].slo):g} ms: 0 of {demand:.1f} rows/s"
        return Infeasible(name, constraint, "raise its SLO", missing, plan)
    constraint = f"{len(problem.devices)} uncut devices, {crowd} runs on each, carry {demand - left:.1f} of "
    return Infeasible(name, f"{constraint}{demand:.1f} rows/s", f"lower its rate by {left:.1f}/s", missing, plan)
