"""PARIS: how many gpulets of each MIG size, from the batches that requests bring (Kim et al., DAC 2022, section 4).

Every size has a knee: the batch from which its utilization is at least theta. Batches up to the smallest size's knee are
that size's segment, those up to the next knee the next size's, and the largest size takes the rest. A size's relative
demand R is the time that its segment costs it per request, and counts go in proportion to R within a budget of slices.

The method is the subject of patent applications (US 2024/0012690 A1, Samsung Electronics and KAIST).

Written without the paper's text: the steps are known, the formulas recalled and checked by its worked example. Ours,
where it is silent: knees that run backwards make an empty segment; utilization is what part of its own best rows/s a
size reaches; counts are rounded such that the smallest N / R is largest (`Rounding.MAXMIN`) and every request keeps a
size that is in time; where not every segment gets a gpulet, the one with the least work goes to the next larger size.
Several models share the budget by what their requests cost, each with its own knees. Sizes of green contexts and MPS
count as if they were MIG's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import floor

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Size
from gpulet.errors import PlanError
from gpulet.plan import Plan
from gpulet.pools import Group, counted, group, pool_plan, soonest, usable
from gpulet.profile import Profile
from gpulet.units import SECOND

THETA = 0.8
"""The utilization at the knee (recalled from the paper)."""

Utilization = Callable[[Profile, str, int], Sequence[float]]
"""(profile, model, SMs) to utilization by rows, 0 to 1."""
Key = tuple[str, Size]
"""A model's segment on a size."""


class Rounding(StrEnum):
    """Fractional counts to whole ones: the largest smallest N / R, or floors filled up by largest remainder."""

    MAXMIN = "maxmin"
    FLOOR_FILL = "floor_fill"


def saturation(profile: Profile, model: str, sms: int) -> Sequence[float]:
    """The part of its own best rows/s that a size reaches, by rows, over all batches measured there."""
    rates = [rows / latency for rows, latency in enumerate(profile.measured(model, sms), start=1)]
    return [rate / max(rates) for rate in rates]


def gract(profile: Profile, model: str, sms: int) -> Sequence[float]:
    """The part of the time in which a size's compute engine is active (DCGM's counter), by rows.

    It says "busy", not "full": on public profiles small batches reach any threshold. Raises `PlanError` where nobody
    measured it.
    """
    used = [use.busy for use in profile.uses(model, sms)]
    if not any(used):
        msg = f"utilization gract: nobody measured how busy model {model} keeps {sms} SMs"
        raise PlanError(msg)
    return used


UTILIZATIONS: Mapping[str, Utilization] = {"saturation": saturation, "gract": gract}


@dataclass(frozen=True, slots=True)
class Segment:
    """The batches above `low` up to `high` of one model go to `size`, whose knee is `knee`; `demand` is R in seconds."""

    size: Size
    knee: int
    low: int
    high: int
    demand: float


@dataclass(frozen=True, slots=True)
class Partitioning:
    """Every step of PARIS: segments of each model by ascending size, fractional counts, whole ones.

    `moved` are the segments that went to the next larger size, so that each of the others gets a gpulet; `tops` are the most rows of a request
    that each size is then meant for, 0 for none.
    """

    segments: Mapping[str, tuple[Segment, ...]]
    fractional: Mapping[Key, float]
    counts: Mapping[Key, int]
    tops: Mapping[Key, int]
    moved: tuple[Key, ...] = ()


def paris(
    problem: Problem,
    *,
    theta: float = THETA,
    rounding: Rounding = Rounding.MAXMIN,
    utilization: Utilization = saturation,
) -> Plan | Infeasible:
    """The pool of PARIS within `problem.slices` (all slices where 0); requests go wherever a dispatcher sends them."""
    cutter = Cutter(problem.devices, problem.slices)
    found = partition(problem, cutter, theta=theta, rounding=rounding, utilization=utilization)
    groups = groups_of(problem, found)
    if not cutter.fits(counted(groups)):
        constraint = f"every model needs a gpulet that is in time: {len(problem.models)} models, {cutter.room:g} units"
        return Infeasible(
            next(iter(problem.models)), constraint, "add a device", dict(problem.demand), Plan(problem.devices)
        )
    return pool_plan(problem, cutter, groups)


def groups_of(problem: Problem, found: Partitioning) -> tuple[Group, ...]:
    """The counts as groups of gpulets. One that only keeps requests in time is for all that it can hold."""
    groups = (group(problem, size, [name], count) for (name, size), count in found.counts.items() if count)
    return tuple(replace(g, models={n: found.tops[n, g.size] or top for n, top in g.models.items()}) for g in groups)


def partition(
    problem: Problem,
    cutter: Cutter,
    *,
    theta: float = THETA,
    rounding: Rounding = Rounding.MAXMIN,
    utilization: Utilization = saturation,
) -> Partitioning:
    """Steps A to C with every intermediate."""
    sizes = [size for size in cutter.sizes if cutter.fits({size: 1})]
    segments = {name: segments_of(problem, name, sizes, theta, utilization) for name in problem.models}
    spans = {(name, s.size): (s.low, s.high) for name, mine in segments.items() for s in mine}
    wanted = {key: _load(problem, key, span) for key, span in spans.items()}
    units = sum(w * cutter.units(size) for (_, size), w in wanted.items()) or 1.0
    fractional = {key: w * cutter.room / units for key, w in wanted.items()}
    moved: list[Key] = []
    least: dict[Key, int] = {}
    while True:
        counts = _whole(wanted, fractional, least, cutter, rounding)
        movable = [key for key, w in wanted.items() if w > 0 and _larger(wanted, key)]
        if movable and any(w > 0 and not counts[key] for key, w in wanted.items()):
            smallest = min(movable, key=lambda key: wanted[key] * cutter.units(key[1]))
            following = _larger(wanted, smallest)[0]
            low, high = spans[smallest]
            spans |= {following: (low, max(high, spans[following][1])), smallest: (low, low)}
            wanted |= {key: _load(problem, key, spans[key]) for key in (smallest, following)}
            moved.append(smallest)
            continue
        missing = _unserved(problem, counts, sizes)
        if missing is None or missing in least:
            tops = {key: high if high > low else 0 for key, (low, high) in spans.items()}
            return Partitioning(segments, fractional, counts, tops, tuple(moved))
        least[missing] = 1


def segments_of(
    problem: Problem, model: str, sizes: Sequence[Size], theta: float, utilization: Utilization
) -> tuple[Segment, ...]:
    """Knees (step A), segments and relative demand (step B) of one model."""
    rows, profile = problem.rows_of(model), problem.profile
    sizes = usable(problem, model, sizes)
    found: list[Segment] = []
    low = 0
    for size in sizes:
        latency = profile.measured(model, size.sms)
        used = utilization(profile, model, size.sms)[: rows.largest]
        knee = next((b for b, u in enumerate(used, start=1) if u >= theta), rows.largest)
        high = rows.largest if size is sizes[-1] else max(low, knee)
        high = max(low, min(high, len(latency)))
        found.append(Segment(size, knee, low, high, _cost(problem, (model, size), (low, high))))
        low = high
    return tuple(found)


def _cost(problem: Problem, key: Key, span: tuple[int, int]) -> float:
    """R: seconds of a gpulet of that size that a request of the model costs it, by the requests of that span of rows."""
    model, size = key
    latency = problem.profile.measured(model, size.sms)
    weights = problem.rows_of(model).weights
    return sum(weights[b - 1] * latency[b - 1] for b in range(span[0] + 1, span[1] + 1)) / SECOND


def _load(problem: Problem, key: Key, span: tuple[int, int]) -> float:
    """Gpulets that a model's requests of that span keep busy at the rates that are asked, or at equal ones."""
    rate = 1.0 if problem.is_idle else problem.asked_of(key[0])
    return rate * _cost(problem, key, span)


def _whole(
    wanted: Mapping[Key, float],
    fractional: Mapping[Key, float],
    least: Mapping[Key, int],
    cutter: Cutter,
    rounding: Rounding,
) -> dict[Key, int]:
    """Whole counts that fit the devices and the budget, at least `least`, filled up until nothing more fits."""
    counts = {key: least.get(key, 0) for key in wanted}
    if rounding is Rounding.FLOOR_FILL:
        for key in sorted(wanted, key=lambda k: fractional[k] - floor(fractional[k])):
            while counts[key] < floor(fractional[key]) and _fits(counts, key, cutter):
                counts[key] += 1
    while True:
        order = sorted(
            (key for key, w in wanted.items() if w > 0), key=lambda k: _urgency(k, counts, wanted, fractional, rounding)
        )
        following = next((key for key in order if _fits(counts, key, cutter)), None)
        if following is None:
            return counts
        counts[following] += 1


def _urgency(
    key: Key,
    counts: Mapping[Key, int],
    wanted: Mapping[Key, float],
    fractional: Mapping[Key, float],
    rounding: Rounding,
) -> float:
    """Least first: raising the smallest N / R is what makes the smallest as large as it can be."""
    if rounding is Rounding.MAXMIN:
        return counts[key] / wanted[key]
    return counts[key] - fractional[key]


def _fits(counts: Mapping[Key, int], more: Key, cutter: Cutter) -> bool:
    by_size: dict[Size, int] = {more[1]: 1}
    for (_, size), count in counts.items():
        by_size[size] = by_size.get(size, 0) + count
    return cutter.fits(by_size)


def _larger(wanted: Mapping[Key, float], key: Key) -> list[Key]:
    """The same model's larger sizes, ascending."""
    return sorted(other for other in wanted if other[0] == key[0] and other[1] > key[1])


def _unserved(problem: Problem, counts: Mapping[Key, int], sizes: Sequence[Size]) -> Key | None:
    """The smallest size that holds the largest requests in time of those that no gpulet that was counted does.

    The largest first: what holds them holds the smaller ones too.
    """
    for name, model in problem.models.items():
        there = [size for (owner, size), count in counts.items() if owner == name and count]
        for rows, _ in reversed(problem.rows_of(name).likely):
            if soonest(problem, name, rows, there) > model.slo:
                in_time = (s for s in usable(problem, name, sizes) if soonest(problem, name, rows, [s]) <= model.slo)
                if size := next(in_time, None):
                    return name, size
    return None
