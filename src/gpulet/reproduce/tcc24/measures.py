"""What runs were worth: throughput, utilisations, windows missed, fairness. A run that the count cuts counts in part."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from gpulet.core.fairness import jain
from gpulet.core.ports import Problem
from gpulet.device import Device, Mechanism
from gpulet.plan import Plan
from gpulet.reproduce.tcc24.runs import Ran
from gpulet.systems import System
from gpulet.units import SECOND, Duration, Instant


class Measured(TypedDict):
    """A system's row: rows/s, parts of 1, windows missed per session, sessions counted, fairness indices.

    `jain` and the least over the mean take each run as long and as large as at its model's knee: what a model got done, in
    GPU time. `elapsed` is by the clock, where a run on less than its knee counts for longer.
    """

    total_per_s: float
    models: dict[str, float]
    planned_utilisation: float | None
    allocated_utilisation: float
    useful_utilisation: float
    misses_per_window: float | None
    switches_per_s: float | None
    windows: int
    jain: float
    jain_area: float
    jain_elapsed: float
    least_runtime_over_mean: float
    least_area_over_mean: float
    least_elapsed_over_mean: float


@dataclass(frozen=True, slots=True)
class Count:
    """What is counted: `windows` sessions, each as long as the largest SLO, from 0; `knees` in SMs by model."""

    problem: Problem
    knees: Mapping[str, int]
    windows: int

    @property
    def session(self) -> Duration:
        """How long one is."""
        return max(model.slo for model in self.problem.models.values())

    @property
    def end(self) -> Instant:
        """When the count ends."""
        return self.windows * self.session

    def at_knee(self, run: Ran) -> Duration:
        """How long a run takes at its model's knee."""
        return self.problem.profile.curve(run.model, self.knees[run.model])[run.rows - 1]

    @property
    def whole(self) -> int:
        """SM-nanoseconds that there are."""
        return self.end * sum(device.kind.sms for device in self.problem.devices)


def measured(ran: Sequence[Ran], count: Count, planned: float | None) -> Measured:
    """Everything about these runs."""
    names = list(count.problem.models)
    rows, runtime, elapsed = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for run in ran:
        inside = max(0, min(run.end, count.end) - run.start)
        part = inside / max(1, run.end - run.start)
        rows[run.model] += run.rows * part
        runtime[run.model] += part * count.at_knee(run)
        elapsed[run.model] += inside
    allocated, useful = utilisations(ran, count)
    return fair(rows, runtime, elapsed, count) | {
        "planned_utilisation": planned,
        "allocated_utilisation": allocated,
        "useful_utilisation": useful,
        "misses_per_window": misses(ran, count) / count.windows,
        "switches_per_s": switches(ran, count) * SECOND / count.end,
    }


def fair(
    rows: Mapping[str, float], runtime: Mapping[str, float], elapsed: Mapping[str, float], count: Count
) -> Measured:
    """Throughput and fairness of so many rows and nanoseconds by model; what only runs can say is left open."""
    area = [runtime[name] * count.knees[name] for name in rows]
    rates = {name: found * SECOND / count.end for name, found in rows.items()}
    return {
        "total_per_s": sum(rates.values()),
        "models": rates,
        "planned_utilisation": None,
        "allocated_utilisation": 0.0,
        "useful_utilisation": 0.0,
        "misses_per_window": None,
        "switches_per_s": None,
        "windows": count.windows,
        "jain": jain(runtime.values()),
        "jain_area": jain(area),
        "jain_elapsed": jain(elapsed.values()),
        "least_runtime_over_mean": _least_over_mean(runtime.values()),
        "least_area_over_mean": _least_over_mean(area),
        "least_elapsed_over_mean": _least_over_mean(elapsed.values()),
    }


def _least_over_mean(values: Iterable[float]) -> float:
    shares = list(values)
    return min(shares) * len(shares) / sum(shares) if sum(shares) else 0.0


def utilisations(ran: Sequence[Ran], count: Count) -> tuple[float, float]:
    """Time averages of the SMs that are given to runs, and of these up to each model's knee (specification, 1.12, 3.1).

    Where runs want more than a device together, each has its part of it.
    """
    found = [_used(ran, count, device) for device in count.problem.devices]
    return sum(given for given, _ in found) / count.whole, sum(useful for _, useful in found) / count.whole


def _used(ran: Sequence[Ran], count: Count, device: Device) -> tuple[float, float]:
    """SM-nanoseconds of one device: given to runs, and useful."""
    here = [run for run in ran if run.device == device.index and run.start < count.end]
    steps = [(run.start, place, 1) for place, run in enumerate(here)]
    steps += [(min(run.end, count.end), place, 0) for place, run in enumerate(here)]
    running: dict[int, Ran] = {}
    given, useful, since = 0.0, 0.0, 0
    for now, place, begins in sorted(steps):
        if now > since and running:
            wanted = sum(run.size for run in running.values())
            part = min(1.0, device.kind.sms / wanted)
            given += (now - since) * wanted * part
            useful += (now - since) * sum(min(run.size * part, count.knees[run.model]) for run in running.values())
        since = now
        if begins:
            running[place] = here[place]
        else:
            running.pop(place)
    return given, useful


def switches(ran: Sequence[Ran], count: Count) -> int:
    """How often a model's share changes from one run on a device to its next there."""
    last: dict[tuple[str, int], int] = {}
    changed = 0
    for run in ran:
        if run.start < count.end:
            key = run.model, run.device
            changed += last.get(key, run.size) != run.size
            last[key] = run.size
    return changed


def misses(ran: Sequence[Ran], count: Count) -> int:
    """Windows of a model's own SLO in which no run of it begins and ends."""
    missed = 0
    for name, model in count.problem.models.items():
        held = {run.start // model.slo for run in ran if run.model == name and _is_within(run, model.slo)}
        missed += sum(window not in held for window in range(count.end // model.slo))
    return missed


def _is_within(run: Ran, slo: Duration) -> bool:
    return run.end <= (run.start // slo + 1) * slo


def planned_utilisation(system: System, plan: Plan) -> float | None:
    """The area of a plan's timelines over their session, SMs given to gpulets or guaranteed; none where none is planned."""
    sms = sum(device.kind.sms for device in plan.devices)
    if plan.timelines:
        used = sum(run.size.sms * run.length / line.period for line in plan.timelines for run in line.runs)
        return used / sms
    guaranteed = sum(resident.guaranteed for resident in plan.residents)
    if guaranteed:
        return guaranteed / sms
    is_uncut = any(device.mechanism is Mechanism.WHOLE for device in plan.devices)
    if system.carves or is_uncut or not plan.gpulets:
        return None
    return sum(gpulet.size.sms / gpulet.fellows for gpulet in plan.gpulets) / sms
