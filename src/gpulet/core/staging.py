"""The difference of two plans: what stays, what is new, what goes, and what the change costs.

A gpulet stays where it is cut the same way at the same place and already holds the models it is to serve; it keeps its
number and is not touched. Equal devices, and equal places on one, are exchanged so that as much as possible stays.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType

from gpulet.device import Device, Mechanism
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import SECOND


@dataclass(frozen=True, slots=True)
class Stage:
    """A plan with numbers beside those in force, and what changes. `loss` is the most rows that the change can cost.

    While a gpulet is built the old ones serve on; then each ends its batch. Where one waits for several to end, those that
    end first stand idle meanwhile: that is the loss.
    """

    plan: Plan
    stay: tuple[GpuletId, ...]
    start: tuple[GpuletId, ...]
    stop: tuple[GpuletId, ...]
    loss: float

    @property
    def is_nothing(self) -> bool:
        """Whether the gpulets are those in force, but for their turns."""
        return not self.start and not self.stop


def stage(
    plan: Plan,
    in_force: Plan,
    devices: Collection[int] = (),
    memory: Mapping[str, int] = MappingProxyType({}),
    down: Collection[GpuletId] = (),
) -> Stage:
    """The change from `in_force` to `plan`, which may be moved among `devices`, all of the plan's where none are named.

    Of `in_force` those that are `down` may stay as they are, but serve nothing.

    What a gpulet that stays has loaded and needs no more is spare from then on, where `memory`, bytes by model, allows it.
    """
    usable = [d.index for d in plan.devices if not devices or d.index in devices]
    alike = _cut_alike(plan, in_force.without(down))
    moved, blank = _placed(plan, alike, usable)
    own = {g.id: g for g in in_force.gpulets}
    stays = {number: own[old.id] for number, old in blank.items()}
    numbered = _numbered(moved, stays, in_force)
    if any(numbered.overfull(memory)):  # who would keep what is needed no more begins anew
        lean = {g.id for g in moved.gpulets if g.id in stays and stays[g.id].held <= g.held}
        stays = {number: old for number, old in stays.items() if number in lean}
        numbered = _numbered(moved, stays, in_force)
    kept = tuple(sorted(old.id for old in stays.values()))
    start = tuple(g.id for g in numbered.gpulets if g.id not in kept)
    stop = tuple(g.id for g in in_force.gpulets if g.id not in kept)
    return Stage(numbered, kept, start, stop, _loss(numbered, in_force, start, stop))


def _placed(plan: Plan, alike: Plan, usable: Sequence[int]) -> tuple[Plan, dict[GpuletId, Gpulet]]:
    """As it is, or moved where more stays then; which gpulets stay as which."""
    moved = _aligned(plan, alike, usable)
    stays = _staying(moved.gpulets, alike.gpulets)
    if plan.in_use <= {*usable}:
        here = _staying(plan.gpulets, alike.gpulets)
        if len(here) >= len(stays):
            return plan, here
    return moved, stays


def _numbered(plan: Plan, stays: Mapping[GpuletId, Gpulet], in_force: Plan) -> Plan:
    """Who stays keeps its number, the others have numbers that nobody has now."""
    known = {g.id for g in in_force.gpulets}
    free = (number for number in count() if number not in known)
    gpulets = (_keeping(g, stays[g.id]) if g.id in stays else replace(g, id=next(free)) for g in plan.gpulets)
    return replace(plan, gpulets=tuple(sorted(gpulets, key=lambda g: g.id)))


def _keeping(new: Gpulet, old: Gpulet) -> Gpulet:
    return replace(new, id=old.id, spare=tuple(sorted(old.held - set(new.models))))


def _cut_alike(plan: Plan, in_force: Plan) -> Plan:
    """Less what stands on devices that are cut by another mechanism: nothing of that can stay."""
    mechanisms = {device.index: device.mechanism for device in plan.devices}
    other = {d.index for d in in_force.devices if mechanisms.get(d.index) is not d.mechanism}
    return replace(in_force, gpulets=tuple(g for g in in_force.gpulets if g.device not in other)) if other else in_force


def _staying(new: Iterable[Gpulet], old: Iterable[Gpulet]) -> dict[GpuletId, Gpulet]:
    """Which is which; on an uncut device several may stand at one place."""
    left, found = list(old), {}
    for g in new:
        match = next((o for o in left if _at(o) == _at(g) and o.held >= set(g.models)), None)
        if match:
            left.remove(match)
            found[g.id] = match
    return found


def _at(g: Gpulet) -> tuple[object, ...]:
    return (g.device, g.offset, *_cut(g))


def _cut(g: Gpulet) -> tuple[object, ...]:
    return (g.size, g.processes, g.process, g.priority)


def _aligned(plan: Plan, in_force: Plan, usable: Sequence[int]) -> Plan:
    """The same plan on other devices, and at other places of them, where more of what stands there stays."""
    if not plan.gpulets:
        return plan
    old = {index: [g for g in in_force.gpulets if g.device == index] for index in usable}
    new = {index: [g for g in plan.gpulets if g.device == index] for index in usable}
    pairs = [(_likeness(new[a], old[b]), a != b, a, b) for a in usable if new[a] for b in usable]
    target: dict[int, int] = {}
    for _, _, a, b in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:])):
        if a not in target and b not in target.values():
            target[a] = b
    kinds = {d.index: d for d in plan.devices}
    placed: dict[int, Gpulet] = {}
    for a, b in target.items():
        here = [replace(g, device=b) for g in new[a]]
        placed |= {g.id: g for g in _rearranged(kinds[b], here, old[b])}
    return replace(plan, gpulets=tuple(placed.get(g.id, g) for g in plan.gpulets))


def _likeness(new: Sequence[Gpulet], old: Sequence[Gpulet]) -> int:
    """SMs of the gpulets that could stay."""
    return sum(g.size.sms for g, _ in _matches(new, old))


def _matches(new: Sequence[Gpulet], old: Sequence[Gpulet]) -> list[tuple[Gpulet, Gpulet]]:
    """Which could stay as which, were it not for their places; those that hold least besides come first."""
    left, found = list(old), []
    for g in sorted(new, key=lambda g: -len(g.turns)):
        fits = [o for o in left if _cut(o) == _cut(g) and o.held >= set(g.models)]
        if fits:
            best = min(fits, key=lambda o: (len(o.held), o.offset != g.offset))
            left.remove(best)
            found.append((g, best))
    return found


def _rearranged(device: Device, new: Sequence[Gpulet], old: Sequence[Gpulet]) -> Sequence[Gpulet]:
    """What can stay at its place, the rest in the gaps; all as planned where that does not fit or places are not alike."""
    if device.mechanism in {Mechanism.MIG, Mechanism.WHOLE} or any(g.process for g in new):
        return new
    staying = {g.id: replace(g, offset=match.offset) for g, match in _matches(new, old)}
    taken = [(g.offset, g.offset + device.length(g.size)) for g in staying.values()]
    rest = []
    for g in sorted((g for g in new if g.id not in staying), key=lambda g: -g.size.sms):
        length = device.length(g.size)
        starts = sorted([0, *(round(end) for _, end in taken)])
        fits = (at for at in starts if at + length <= device.room and _is_free(at, at + length, taken))
        offset = next(fits, None)
        if offset is None:
            return new
        taken.append((offset, offset + length))
        rest.append(replace(g, offset=offset))
    return [*staying.values(), *rest]


def _is_free(start: float, end: float, taken: Iterable[tuple[float, float]]) -> bool:
    return all(end <= a or b <= start for a, b in taken)


def _loss(plan: Plan, in_force: Plan, start: Collection[GpuletId], stop: Collection[GpuletId]) -> float:
    """Rows: on each device that something new waits for, each one that stops may stand idle for the longest run there."""
    lost = 0.0
    for index in {g.device for g in plan.gpulets if g.id in start}:
        going = [g for g in in_force.gpulets if g.id in stop and g.device == index]
        longest = max((turn.latency for g in going for turn in g.turns), default=0)
        if len(going) > 1:
            lost += sum(turn.rate for g in going for turn in g.turns) * longest / SECOND
    return lost
