"""What would make a refused plan fit: the smallest change of one thing, each tried on the planner that refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.plan import Plan
from gpulet.units import Duration, to_ms

_MOST_DEVICES = 3
"""At most so many times the fleet are tried, beside four devices."""
_MOST_SLO = 8
_HALVINGS = 7


@dataclass(frozen=True, slots=True)
class Remedies:
    """Each alone makes it fit: so many devices more, so much longer an SLO, so many rows/s less; 0 where none was found."""

    devices: int = 0
    slo: Duration = 0
    rate: float = 0.0

    def __str__(self) -> str:
        count = f"{self.devices} device{'s' if self.devices > 1 else ''} more"
        options = [count] if self.devices else []
        options += [f"an SLO {to_ms(self.slo):.1f} ms longer"] if self.slo else []
        options += [f"{self.rate:.1f} rows/s less of it"] if self.rate else []
        return f"it fits with {' or '.join(options)}" if options else "no single change of it was found that fits"


def remedies(planner: Planner, problem: Problem, refusal: Infeasible, *, adds_devices: bool = True) -> Remedies:
    """The smallest changes for the model that the refusal names. Every one that is returned was accepted.

    Without `adds_devices` (this machine's own cores) no more devices are tried.
    """

    def accepts(changed: Problem) -> bool:
        return isinstance(planner(changed), Plan)

    name = refusal.model
    fleet = len(problem.devices)
    devices = _fewest(fleet, lambda extra: accepts(_with_devices(problem, extra))) if adds_devices else 0
    slo = _least(lambda part: accepts(_with_slo(problem, name, part * (_MOST_SLO - 1))))
    rate = _least(lambda part: accepts(_with_rate(problem, name, part)))
    return Remedies(
        devices,
        _longer(problem, name, slo * (_MOST_SLO - 1)) if slo else 0,
        problem.demand.get(name, 0.0) * rate,
    )


def _fewest(fleet: int, accepts: Callable[[int], bool]) -> int:
    """By doubling, then halving; 0 when not even the most is enough."""
    low, high, most = 0, 1, _MOST_DEVICES * fleet + 4
    while not accepts(high):
        if high == most:
            return 0
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def _least(accepts: Callable[[float], bool]) -> float:
    """The least part in (0, 1] that was accepted, to a 128th; 0 when not even the whole is enough."""
    if not accepts(1.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if accepts(middle) else (middle, high)
    return high


def _with_devices(problem: Problem, extra: int) -> Problem:
    """A budget of slices grows by as much for each device as it had for each."""
    last = problem.devices[-1]
    more = tuple(replace(last, index=last.index + 1 + n) for n in range(extra))
    slices = problem.slices + extra * -(-problem.slices // len(problem.devices))
    return replace(problem, devices=(*problem.devices, *more), slices=slices)


def _longer(problem: Problem, name: str, part: float) -> Duration:
    return round(problem.models[name].slo * part)


def _with_slo(problem: Problem, name: str, part: float) -> Problem:
    model = problem.models[name]
    return replace(
        problem, models={**problem.models, name: replace(model, slo=model.slo + _longer(problem, name, part))}
    )


def _with_rate(problem: Problem, name: str, part: float) -> Problem:
    """With the whole rate gone the model stays, without demand. Clients' own rates are left as they are."""
    return replace(problem, demand={**problem.demand, name: problem.demand.get(name, 0.0) * (1 - part)}, sent={})
