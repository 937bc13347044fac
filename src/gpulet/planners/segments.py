"""MIG instances of one model each, with several MPS processes inside: the segments of ParvaGPU (SC 2024, arXiv 2409.14447).

The candidate rule is that of ParvaGPU's configurator: of the measured (batch, processes) of a model at a size, the one with the
largest throughput whose latency is below half the SLO less a margin of 10 %, so below 0.45 SLO. What differs: there the
best throughput per slice decides the size, greedily for each model, and an allocator packs the segments and splits those
that are left over; here one mixed-integer program (HiGHS) chooses how many instances of each size each model gets, over
every way to cut a device by MIG (`gpulet.mig`): first on the fewest devices, then on these with the largest factor that
all rates could grow by, then with the fewest compute slices. The first is proved; the second and third are within half
a percent of the optimum, or the best of 100 nodes of the search. No clock has a part in it, so a problem has one plan.

A request just misses a batch and waits for it, so its worst latency is twice that of a batch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from highspy import Highs
from highspy.highs import highs_linear_expression

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Device, Mechanism, Size
from gpulet.errors import PlanError
from gpulet.mig import maximal_layouts
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.program import Program
from gpulet.units import SECOND, Duration, to_ms

MARGIN = 0.1
MOST_FACTOR = 16.0
"""Headroom beyond that is nobody's need, and coefficients stay within the solver's reach."""
_GAP = 5e-3
_ROUGHLY = 0.05
"""How near the best a plan of a refused problem comes."""
_MOST_NODES = 100
_ROUNDING = 1e-6
"""What the solver lets pass."""
_EXACT = 1e-9
"""What a plan may be short by (`Plan.violations`)."""
_ANY = 0
"""In place of a size."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One model on an instance of its own: `processes`, each with a batch of `batch` rows at a time."""

    model: Model
    size: Size
    batch: int
    processes: int
    latency: Duration

    @property
    def rate(self) -> float:
        """Rows/s of all its processes."""
        return self.processes * self.batch * SECOND / self.latency


def segments(problem: Problem, *, margin: float = MARGIN) -> Plan | Infeasible:
    """The fewest MIG devices that carry the rates, with as much headroom as fits on them.

    Raises `PlanError` for devices that are not cut by MIG or not equal, and for more `slices` than there are.
    """
    stranger = next((d for d in problem.devices if d.mechanism is not Mechanism.MIG), None)
    if stranger:
        msg = f"segments are MIG instances; device {stranger.index} is cut by {stranger.mechanism}"
        raise PlanError(msg)
    wanted = [model for model in problem.models.values() if problem.demand.get(model.name, 0.0) > 0]
    offers = {model.name: tuple(_offers(problem, model, margin)) for model in wanted}
    case = _Case(problem, tuple(segment for mine in offers.values() for segment in mine))
    hopeless = [model for model in wanted if not offers[model.name]]
    return _slow(case, hopeless[0], margin) if hopeless else _decided(case)


def _offers(problem: Problem, model: Model, margin: float) -> Iterator[Segment]:
    """At each size where any is fast enough, the segment with the largest throughput; of equals, the fastest."""
    device = problem.devices[0]
    in_time = [s for s in _candidates(problem, model, device) if _is_in_time(s, margin)]
    for size in device.sizes():
        mine = [s for s in in_time if s.size == size and _fits(device, s)]
        if mine:
            yield max(mine, key=lambda s: (s.rate, -s.latency, -s.processes))


def _candidates(problem: Problem, model: Model, device: Device) -> Iterator[Segment]:
    """The batches that were measured at each size, and the model's limit; none too small for its largest request.

    At a size where nobody measured them, those of the other sizes: the profile interpolates.
    """
    measured: dict[tuple[int, int], set[int]] = {}
    for point in problem.profile.points:
        if point.model == model.name:
            for sms in (point.size, _ANY):
                measured.setdefault((sms, point.processes), set()).add(point.rows)
    least = problem.rows_of(model.name).largest
    for size in device.sizes():
        for processes in problem.profile.processes(model.name, size.sms):
            curve = problem.profile.curve(model.name, size.sms, processes=processes)
            limit = min(model.max_batch, len(curve))
            batches = measured.get((size.sms, processes)) or measured[_ANY, processes]
            for batch in sorted(b for b in {*batches, limit} if least <= b <= limit):
                yield Segment(model, size, batch, processes, curve[batch - 1])


def _is_in_time(segment: Segment, margin: float) -> bool:
    return 2 * segment.latency < (1 - margin) * segment.model.slo


def _fits(device: Device, segment: Segment) -> bool:
    """Whether the instance's memory, where it is known, holds a replica for each process."""
    memory = device.kind.geometry.find(segment.size.label).memory
    return not memory or segment.processes * segment.model.memory <= memory


class _Case:
    """What is to be decided: how many instances each of the offered segments gets."""

    def __init__(self, problem: Problem, offers: Sequence[Segment]) -> None:
        self.problem = problem
        self.offers = tuple(offers)
        self.cutter = Cutter(problem.devices, problem.slices)
        self.cuts = _cuts(problem.devices[0])

    @property
    def ample(self) -> int:
        """As many devices are enough whatever is chosen: one for each instance."""
        return sum(ceil(self.problem.demand[s.model.name] / s.rate) for s in self.offers)

    def slices(self, counts: Sequence[int]) -> int:
        """The compute slices of so many instances of each offered segment."""
        return round(sum(n * self.cutter.units(s.size) for n, s in zip(counts, self.offers, strict=True)))

    def carries(self, counts: Sequence[int]) -> bool:
        """Whether so many instances of each offered segment carry every rate."""
        left = dict(self.problem.demand)
        for segment, count in zip(self.offers, counts, strict=True):
            left[segment.model.name] -= count * segment.rate
        return all(rate <= self.problem.demand[name] * _EXACT for name, rate in left.items())

    def plan(self, counts: Sequence[int]) -> Plan:
        """So many instances of each offered segment, packed."""
        standing = [segment for segment, count in zip(self.offers, counts, strict=True) for _ in range(count)]
        promises = {name: self._promise(model, standing) for name, model in self.problem.models.items()}
        gpulets: list[Gpulet] = []
        for device, placement in self.cutter.pack(Counter(s.size for s in standing)):
            segment = next(s for s in standing if s.size == placement.size)
            standing.remove(segment)
            promise = promises[segment.model.name]
            rate = segment.rate * min(1.0, promise.demand / promise.throughput)
            turn = Turn(segment.model.name, segment.batch, rate, segment.latency)
            where = (len(gpulets), device, placement.size, placement.offset)
            gpulets.append(Gpulet(*where, segment.latency, (turn,), segment.processes))
        return Plan(self.problem.devices, tuple(gpulets), promises=promises)

    def _promise(self, model: Model, standing: Sequence[Segment]) -> Promise:
        mine = [s for s in standing if s.model.name == model.name]
        worst = max((2 * s.latency for s in mine), default=0)
        return Promise(self.problem.demand.get(model.name, 0.0), sum(s.rate for s in mine), worst, model.slo)


def _cuts(device: Device) -> tuple[Counter[Size], ...]:
    """The ways to cut one device by MIG that no other one outdoes in every size: 12 on an A100."""
    sizes = {size.label: size for size in device.sizes()}
    layouts = maximal_layouts(device.kind.geometry)
    every = dict.fromkeys(tuple(sorted(Counter(sizes[i.type.label] for i in one).items())) for one in layouts)
    cuts = [Counter(dict(cut)) for cut in every]
    return tuple(cut for cut in cuts if not any(cut < other for other in cuts))


class _Draft:
    """A mixed-integer program over the counts of a case; `parts` of the demand that they carry, by model."""

    def __init__(self, case: _Case, devices: int, slices: float, program: Program) -> None:
        self.program = program
        self._ways, slots = program.cut(devices, case.cuts, is_whole=True)
        self._counts = [program.variable(is_whole=True) for _ in case.offers]
        chosen = list(zip(self._counts, case.offers, strict=True))
        for size, room in slots.items():
            program.at_most(Highs.qsum([count for count, segment in chosen if segment.size == size]), room)
        self._slices = [count * case.cutter.units(segment.size) for count, segment in chosen]
        if slices:
            program.at_most(Highs.qsum(self._slices), slices)
        self.parts: dict[str, highs_linear_expression] = {}
        for name in dict.fromkeys(segment.model.name for segment in case.offers):
            mine = [(count, s.rate / case.problem.demand[name]) for count, s in chosen if s.model.name == name]
            self.parts[name] = Highs.qsum([count * min(part, MOST_FACTOR) for count, part in mine])

    def cover(self, factor: float) -> None:
        """Every model's demand times `factor` must be carried."""
        for part in self.parts.values():
            self.program.at_least(part, factor)

    def use_fewest_devices(self) -> bool:
        """Solve; whether the constraints can be kept."""
        return self.program.minimise(Highs.qsum(self._ways))

    def use_fewest_slices(self) -> bool:
        """Solve; whether the constraints were found to be kept."""
        return self.program.minimise(Highs.qsum(self._slices))

    def grow(self, most: float) -> float:
        """Solve for the largest factor on all rates, up to `most`."""
        return self.program.maximise_least(self.parts.values(), most)

    @property
    def devices(self) -> int:
        """Of the solution: how many devices are cut."""
        return sum(self.program.whole(self._ways))

    @property
    def counts(self) -> list[int]:
        """Of the solution: how many instances each offered segment gets."""
        return self.program.whole(self._counts)


def _decided(case: _Case) -> Plan | Infeasible:
    """The plan of a case in which every model has an offer."""
    if not case.offers:
        return case.plan([])
    devices, slices = len(case.problem.devices), case.problem.slices
    covering = _covering(case)
    if covering is None:
        return _crowded(case, "compute slices", slices, _slices_needed(case))
    if covering.devices > devices:
        return _crowded(case, "devices", devices, covering.devices)
    roomiest = _Draft(case, covering.devices, slices, Program(_GAP, _MOST_NODES))
    factor = roomiest.grow(MOST_FACTOR)
    if factor < 1:
        return case.plan(covering.counts)
    leanest = _Draft(case, covering.devices, slices, Program(_GAP, _MOST_NODES))
    leanest.cover(max(1.0, factor * (1 - _ROUNDING)))
    found = [roomiest.counts, *([leanest.counts] if leanest.use_fewest_slices() else [])]
    return case.plan(min(filter(case.carries, found), key=case.slices, default=covering.counts))


def _covering(case: _Case) -> _Draft | None:
    """All rates on the fewest devices; `None` where the slices are too few. A second look where the solver was too lax."""
    for factor in (1.0, 1 + 10 * _ROUNDING):
        draft = _Draft(case, case.ample, case.problem.slices, Program())
        draft.cover(factor)
        if not draft.use_fewest_devices():
            return None
        if case.carries(draft.counts):
            break
    return draft


def _crowded(case: _Case, what: str, there: int, needed: int) -> Infeasible:
    """Which rate is the shortest of devices, or of the budget of slices."""
    draft = _Draft(case, len(case.problem.devices), case.problem.slices, Program(_ROUGHLY, 1))
    draft.grow(1.0)
    plan = case.plan(draft.counts)
    short = {name: p.demand - p.throughput for name, p in plan.promises.items() if p.throughput < p.demand}
    name = max(short, key=lambda n: short[n] / plan.promises[n].demand)
    promise = plan.promises[name]
    served = f"{promise.throughput:.1f} of {promise.demand:.1f} rows/s"
    constraint = f"{served}: there are {there} {what}, and all rates together need {needed}"
    return Infeasible(name, constraint, f"add {needed - there} {what}", short, plan)


def _slices_needed(case: _Case) -> int:
    draft = _Draft(case, case.ample, 0, Program())
    draft.cover(1.0)
    assert draft.use_fewest_slices(), "every model has an offer, and there are devices for all"
    return case.slices(draft.counts)


def _slow(case: _Case, model: Model, margin: float) -> Infeasible:
    """No instance is fast enough for this model, or none of those has the memory; the others are planned without it."""
    problem = case.problem
    ways = list(_candidates(problem, model, problem.devices[0]))
    nearest = "raise its SLO"
    if not ways:
        least = problem.rows_of(model.name).largest
        constraint = f"no MIG type is profiled with batches of {least} to {model.max_batch} rows"
        nearest = "measure it there"
    elif any(_is_in_time(segment, margin) for segment in ways):
        constraint = f"its {model.memory} bytes fit into no instance that is fast enough"
        nearest += ", or plan for devices of more memory"
    else:
        best = min(ways, key=lambda s: s.latency)
        fastest = f"{to_ms(best.latency):.1f} ms, {best.batch} rows on {best.size.label}"
        part = f"{(1 - margin) / 2:.0%} of its SLO of {to_ms(model.slo):g} ms"
        constraint = f"no batch takes less than {part} (fastest: {fastest})"
    rest = _decided(case)
    partial = rest.partial if isinstance(rest, Infeasible) else rest
    short = {name: p.demand - p.throughput for name, p in partial.promises.items() if p.throughput < p.demand}
    return Infeasible(model.name, constraint, nearest, short, partial)
