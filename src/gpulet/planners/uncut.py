"""Every model on every device, and no device cut: how Triton, Clipper and default MPS share GPUs.

A run wants all SMs, so runs that overlap slow each other. Of k models in demand each goes at least at 1/k of its speed
alone, and on the mean at what the others' demand leaves, 1 - (sum of their rates x time per row): the larger of both is
planned with, divided by 1 + contention x (runs - 1), as executors do on `whole` devices when all run. None of those
systems plans: that a demand beyond it is refused is ours, and so is the promise, which is one of the mean. What a device
is partitioned by is ignored.

With `batch` every batch has so many rows (fewer where a model cannot). Time to fill it is not counted: at low rates
requests of such a system are late, and no plan of it could help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.duty import Cycle, Share, saturated
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Curve
from gpulet.units import SECOND, to_ms

_ROUNDS = 50
"""Speeds settle in a few rounds: they only rise, since a higher speed allows batches that take less of the device."""


def uncut(problem: Problem, *, copies: int = 1, batch: int = 0) -> Plan | Infeasible:
    """All models on all devices, `copies` of each a device, or why that does not carry the demand."""
    devices = tuple(replace(device, mechanism=Mechanism.WHOLE) for device in problem.devices)
    crowds = [_Crowd(problem, device, copies, batch) for device in devices]
    settled = [(crowd.device, crowd.settled()) for crowd in crowds]
    homes = [(device, name, cycles[name]) for device, cycles in settled for name in cycles for _ in range(copies)]
    gpulets = tuple(_gpulet(problem, place, *home, len(homes)) for place, home in enumerate(homes))
    carried = {name: _carried(problem.models[name], [cycles[name] for _, cycles in settled]) for name in problem.models}
    carried = {name: rate * copies for name, rate in carried.items()}
    worst = {name: max(cycles[name].worst for _, cycles in settled) for name in problem.models}
    promises = {
        name: Promise(problem.demand.get(name, 0.0), rate, worst[name], problem.models[name].slo)
        for name, rate in carried.items()
        if rate
    }
    plan = Plan(devices, gpulets, promises=promises)
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried[name]}
    return _refusal(problem, plan, missing) if missing else problem.within_memory(plan)


@dataclass(frozen=True, slots=True)
class _Crowd:
    """All models on one device, with an even part of the demand."""

    problem: Problem
    device: Device
    copies: int
    batch: int

    def settled(self) -> dict[str, Cycle]:
        """Back-to-back batches of each model at the speed that the others leave it; a single row where none is in time."""
        wanted = max(1, sum(rate > 0 for rate in self.problem.demand.values()))
        toll = 1 + self.device.contention * (wanted * self.copies - 1)
        speeds = dict.fromkeys(self.problem.models, 1 / wanted)
        for _ in range(_ROUNDS):
            cycles = {name: self._cycle(model, toll / speeds[name]) for name, model in self.problem.models.items()}
            used = {name: self._used(name, cycle) * toll for name, cycle in cycles.items()}
            left = {name: max(1 / wanted, 1 - sum(used.values()) + used[name]) for name in used}
            if left == speeds:
                break
            speeds = left
        return cycles

    def _curve(self, name: str) -> Curve:
        return self.problem.profile.curve(name, self.device.kind.sms)

    def _used(self, name: str, cycle: Cycle) -> float:
        """The part of the device that the demand takes in batches of such a cycle."""
        rows = cycle.batches[0]
        rate = self.problem.demand.get(name, 0.0) / len(self.problem.devices)
        return rate * self._curve(name)[rows - 1] / (rows * SECOND)

    def _cycle(self, model: Model, slowdown: float) -> Cycle:
        """The copies of a model share its speed."""
        curve = tuple(round(t * slowdown * self.copies) for t in self._curve(model.name))
        most = min(model.max_batch, len(curve))
        if self.batch:
            rows = min(self.batch, most)
            return Cycle(curve[rows - 1], (rows,), (curve[rows - 1],))
        found = saturated(Share(curve, model.slo, 0.0, most))
        return found if found.batches else Cycle(curve[0], (1,), (curve[0],))


def _carried(model: Model, cycles: Sequence[Cycle]) -> float:
    """Rows/s of one copy on every device, as much as the slowest for each; 0 when an objective is not kept."""
    if any(cycle.worst > model.slo for cycle in cycles):
        return 0.0
    return len(cycles) * min(cycle.batches[0] * SECOND / cycle.duty for cycle in cycles)


def _gpulet(problem: Problem, place: int, device: Device, name: str, cycle: Cycle, homes: int) -> Gpulet:
    rate = problem.demand.get(name, 0.0) * len(problem.models) / homes
    turn = Turn(name, cycle.batches[0], rate, cycle.duty)
    return Gpulet(place, device.index, device.sizes()[-1], 0, cycle.duty, (turn,))


def _refusal(problem: Problem, plan: Plan, missing: Mapping[str, float]) -> Infeasible:
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    crowd = sum(rate > 0 for rate in problem.demand.values())
    if left == demand:
        slo = to_ms(problem.models[name].slo)
        constraint = f"beside {crowd - 1} others no batch of it runs twice within its SLO of {slo:g} ms"
        return Infeasible(name, f"{constraint}: 0 of {demand:.1f} rows/s", "raise its SLO", missing, plan)
    constraint = f"{len(problem.devices)} uncut devices with {crowd} models in demand carry {demand - left:.1f} of "
    return Infeasible(name, f"{constraint}{demand:.1f} rows/s", f"lower its rate by {left:.1f}/s", missing, plan)
