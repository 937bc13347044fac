"""MIG: into what each kind of GPU can be cut, and whether given counts of instances fit on so many GPUs.

A GPU's memory has 8 slices (A30, RTX PRO: 4), and an instance takes `span` of them from one of its type's `starts`; a
layout is legal when no two instances overlap (MIG User Guide, "MIG Device Names" and "Supported MIG Profiles").

The rule: with the whole-GPU instances gone, a GPU of 8 slots is a left half (slots 0-3) and a right one (4-7). A 4g fits
only left, a 3g either side: right first, for a left half holds all that a right one does, and more. Then a free left
half is two pairs of slots, a free right one is a pair (4, 5) and an end (6, 7) that takes a 1g or a 1g of double memory,
and slot 7 is of use to the latter alone. So ends go to double memory first (elsewhere it costs a pair), then to +me,
then to 1g. A GPU makes one +me instance, so those want GPUs of their own, and pairs that are not shared among them.
`fits` is this in numbers, `pack` carries it out; tests compare both with all that can be reached by enumeration.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count, pairwise

from gpulet.errors import PlanError
from gpulet.units import GIB


class Variant(StrEnum):
    """What sets types of equal compute slices apart."""

    PLAIN = "plain"
    MEDIA = "+me"
    DOUBLE = "double memory"


@dataclass(frozen=True, slots=True)
class MigType:
    """One of NVIDIA's MIG profiles: `slices` of compute, memory slices `span` from any of `starts`.

    `sms` and `memory` (usable, in bytes) are 0 where no source gives them; they are never guessed from the slices.
    """

    label: str
    slices: int
    span: int
    starts: tuple[int, ...]
    sms: int = 0
    memory: int = 0
    variant: Variant = Variant.PLAIN


@dataclass(frozen=True, slots=True)
class Geometry:
    """The types of one kind of GPU and its memory slices, `slots`; without types: no MIG."""

    types: tuple[MigType, ...] = ()
    slots: int = 0

    @property
    def plain(self) -> tuple[MigType, ...]:
        """Neither media engines nor double memory: what planners choose from, ascending."""
        return self.of(Variant.PLAIN)

    @property
    def slices(self) -> int:
        """The compute slices of one GPU."""
        return max((t.slices for t in self.types), default=0)

    def of(self, *variants: Variant) -> tuple[MigType, ...]:
        """The types of these variants."""
        return tuple(t for t in self.types if t.variant in variants)

    def find(self, label: str) -> MigType:
        """The type of that label; raises `PlanError` that lists the known ones."""
        for known in self.types:
            if known.label == label:
                return known
        msg = f"no MIG type {label!r} here; known are {', '.join(t.label for t in self.types) or 'none'}"
        raise PlanError(msg)


NO_MIG = Geometry()


@dataclass(frozen=True, slots=True)
class Instance:
    """One MIG instance: the GPU's place among those that are cut, its type and first memory slice."""

    gpu: int
    type: MigType
    start: int


@dataclass(frozen=True, slots=True)
class Change:
    """From one layout to another: what must go, then what must come, and what keeps running meanwhile."""

    destroy: tuple[Instance, ...]
    create: tuple[Instance, ...]
    keep: tuple[Instance, ...]


def fits(geometry: Geometry, counts: Mapping[str, int], gpus: int) -> bool:
    """Whether so many instances, by label, can stand on so many GPUs. Exact; raises `PlanError` for an unknown label."""
    n = _tally(geometry, counts)
    free = gpus - n[_Role.WHOLE]
    left, right = _halves(geometry, n, free)
    if min(free, left) < 0:
        return False
    ends = right - (doubles := min(n[_Role.DOUBLE], right))
    ends -= (media := min(n[_Role.MEDIA], ends))
    alone, ones = n[_Role.MEDIA] - media, max(0, n[_Role.ONE] - ends)
    pairs = n[_Role.PAIR] + n[_Role.MEDIA_PAIR] + n[_Role.DOUBLE] - doubles + max(alone, -(-(alone + ones) // 2))
    return _media(n) <= min(free, left + right) and pairs <= 2 * left + right


def pack(geometry: Geometry, counts: Mapping[str, int], gpus: int) -> tuple[Instance, ...]:
    """Where they stand, on the fewest GPUs, by GPU and slot; raises `PlanError` with the counts when they do not fit."""
    if not fits(geometry, counts, gpus):
        wanted = ", ".join(f"{n} x {label}" for label, n in counts.items() if n)
        msg = f"{wanted} do not fit on {gpus} GPUs of {geometry.slices} compute and {geometry.slots} memory slices"
        raise PlanError(msg)
    used = next(g for g in count() if fits(geometry, counts, g))
    board = _Board(geometry, _tally(geometry, counts), used)
    board.fill()
    return tuple(sorted(board.placed, key=lambda i: (i.gpu, i.start)))


def clashes(geometry: Geometry, placed: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """Why instances (label, start) cannot stand on one GPU together: one line each, none when they can."""
    types = {t.label: t for t in geometry.types}
    spots = sorted(placed, key=lambda spot: (spot[1], spot[0]))
    wrong = [
        f"{label} cannot start at slot {start}"
        for label, start in spots
        if label not in types or start not in types[label].starts
    ]
    if wrong:
        return tuple(wrong)
    media = [label for label, _ in spots if types[label].variant is Variant.MEDIA]
    crowd = [f"{' and '.join(media)}: a GPU makes one +me instance"] if len(media) > 1 else []
    return *crowd, *(
        f"{label} at {start} overlaps {other} at {earlier}"
        for (other, earlier), (label, start) in pairwise(spots)
        if start < earlier + types[other].span
    )


def layouts(geometry: Geometry, *variants: Variant) -> tuple[tuple[Instance, ...], ...]:
    """Every legal layout of one GPU, the empty one included, from the types of these variants (left out: plain)."""
    return tuple(_layouts(geometry, geometry.of(*variants or (Variant.PLAIN,)), 0))


def maximal_layouts(geometry: Geometry, *variants: Variant) -> tuple[tuple[Instance, ...], ...]:
    """Those to which nothing can be added."""
    types = geometry.of(*variants or (Variant.PLAIN,))
    spots = [(t.label, start) for t in types for start in t.starts]
    return tuple(
        layout
        for layout in layouts(geometry, *variants)
        if all(clashes(geometry, [*((i.type.label, i.start) for i in layout), spot]) for spot in spots)
    )


def creation_order(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    """GPU by GPU, larger first: `-cgi 19,19,14,9` fails where 9,14,19,19 does not (MIG User Guide)."""
    return tuple(sorted(instances, key=lambda i: (i.gpu, -i.type.span, -i.type.slices, i.start)))


def change(old: Iterable[Instance], new: Iterable[Instance]) -> Change:
    """What must be done to turn `old` into `new`: whatever has the same type and slot on the same GPU is not touched."""
    before, after = frozenset(old), frozenset(new)
    return Change(*(creation_order(part) for part in (before - after, after - before, before & after)))


class _Role(StrEnum):
    """What a type takes of a GPU; a geometry has one type of each at most."""

    WHOLE = "whole"
    LEFT = "left half"
    HALF = "either half"
    PAIR = "pair"
    DOUBLE = "pair or end"
    ONE = "slot"
    MEDIA_PAIR = "pair +me"
    MEDIA = "slot +me"


_END = 6
_QUARTERED = 4
"""A GPU of so few slots has no right half: it is one left half."""


def _role(geometry: Geometry, of: MigType) -> _Role:
    if of.span == geometry.slots:
        return _Role.WHOLE
    if of.span > 2:  # noqa: PLR2004 (more than a pair of slots)
        return _Role.LEFT if len(of.starts) == 1 else _Role.HALF
    if of.variant is Variant.MEDIA:
        return _Role.MEDIA if of.span == 1 else _Role.MEDIA_PAIR
    if of.variant is Variant.DOUBLE:
        return _Role.DOUBLE
    return _Role.ONE if of.span == 1 else _Role.PAIR


def _tally(geometry: Geometry, counts: Mapping[str, int]) -> Counter[_Role]:
    assert min(counts.values(), default=0) >= 0, "a negative count"
    return Counter({_role(geometry, geometry.find(label)): n for label, n in counts.items()})


def _media(n: Counter[_Role]) -> int:
    return n[_Role.MEDIA] + n[_Role.MEDIA_PAIR]


def _halves(geometry: Geometry, n: Counter[_Role], gpus: int) -> tuple[int, int]:
    """Left and right halves that 4g and 3g leave free; a negative number of left ones when they do not fit."""
    rights = gpus if geometry.slots > _QUARTERED else 0
    in_right = min(n[_Role.HALF], rights)
    return gpus - n[_Role.LEFT] - (n[_Role.HALF] - in_right), rights - in_right


class _Board:
    """Which slots are free and what is placed, while `pack` fills them."""

    def __init__(self, geometry: Geometry, left: Counter[_Role], gpus: int) -> None:
        self.placed: list[Instance] = []
        self._types = {_role(geometry, t): t for t in geometry.types}
        self._left = left
        self._gpus = list(range(gpus))
        self._free = {(gpu, slot) for gpu in self._gpus for slot in range(geometry.slots)}
        self._media: set[int] = set()

    def fill(self) -> None:
        """Place all that is left, in the order of the module's rule."""
        ends = [(gpu, _END) for gpu in self._gpus]
        media, rest = _media(self._left), self._gpus[self._left[_Role.WHOLE] :]
        self._put(_Role.WHOLE)
        # 4g and 3g share GPUs, except where +me instances want GPUs with a half free.
        turn = max(0, self._left[_Role.LEFT] + media - len(rest))
        self._put(_Role.LEFT)
        self._put(_Role.HALF, [(gpu, 4) for gpu in rest[turn:] + rest[:turn]])
        self._put(_Role.HALF)
        self._put(_Role.DOUBLE, ends)
        self._put(_Role.MEDIA, ends)
        for role in (_Role.MEDIA, _Role.MEDIA_PAIR, _Role.DOUBLE, _Role.PAIR, _Role.ONE):
            self._put(role)
        assert not self._left.total(), "the rule and its construction disagree"

    def _put(self, role: _Role, spots: Sequence[tuple[int, int]] = ()) -> None:
        """Place what is left of a role on these spots that are free; left out: anywhere, GPU by GPU."""
        if not self._left[role]:
            return
        it = self._types[role]
        for gpu, start in spots or [(gpu, start) for gpu in self._gpus for start in it.starts]:
            cells = {(gpu, slot) for slot in range(start, start + it.span)}
            is_media = it.variant is Variant.MEDIA
            if self._left[role] and cells <= self._free and not (is_media and gpu in self._media):
                self._free -= cells
                self._left[role] -= 1
                self._media |= {gpu} if is_media else set()
                self.placed.append(Instance(gpu, it, start))


def _layouts(geometry: Geometry, types: Sequence[MigType], slot: int) -> Iterator[tuple[Instance, ...]]:
    """What can stand from `slot` on: nothing that starts here, or one of the types that may."""
    if slot == geometry.slots:
        yield ()
        return
    yield from _layouts(geometry, types, slot + 1)
    for here in (t for t in types if slot in t.starts):
        others = [t for t in types if not t.variant is here.variant is Variant.MEDIA]
        for rest in _layouts(geometry, others, slot + here.span):
            yield (Instance(0, here, slot), *rest)


# Tables. Sources: MIG User Guide, "Supported MIG Profiles"; SMs and memory of Hopper: `nvidia-smi mig -lgip` of real cards.

_EIGHT_SLOTS = (
    MigType("1g", 1, 1, (0, 1, 2, 3, 4, 5, 6)),
    MigType("1g", 1, 2, (0, 2, 4, 6), variant=Variant.DOUBLE),
    MigType("2g", 2, 2, (0, 2, 4)),
    MigType("3g", 3, 4, (0, 4)),
    MigType("4g", 4, 4, (0,)),
    MigType("7g", 7, 8, (0,)),
)
_FOUR_SLOTS = (MigType("1g", 1, 1, (0, 1, 2, 3)), MigType("2g", 2, 2, (0, 2)), MigType("4g", 4, 4, (0,)))
_AMPERE = (14, 14, 28, 42, 56, 98)
_HOPPER = (16, 26, 32, 60, 64, 132)
"""Not in proportion to the slices: a 3g has 60 SMs."""
_UNREAD = (0, 0, 0, 0, 0, 0)


def _cut(
    shapes: Sequence[MigType], gigabytes: str, sms: Sequence[int] = _UNREAD, gib: Sequence[float] = _UNREAD
) -> tuple[MigType, ...]:
    """The types of one kind: its names' sizes in GB, SMs and usable memory in GiB, in the order of `shapes`."""
    names = gigabytes.split()
    return tuple(
        replace(shape, label=f"{shape.label}.{names[i]}gb", sms=sms[i], memory=round(gib[i] * GIB))
        for i, shape in enumerate(shapes)
    )


def _with_media(types: tuple[MigType, ...], slots: int, *slices: int, is_read: bool = False) -> Geometry:
    """And those types of so many slices with media engines, whose SMs and memory are on record for the A100 alone."""
    plain = (t for t in types if t.variant is Variant.PLAIN and t.slices in slices)
    media = (replace(t, label=f"{t.label}+me", variant=Variant.MEDIA) for t in plain)
    return Geometry((*types, *(m if is_read else replace(m, sms=0, memory=0) for m in media)), slots)


GEOMETRIES: Mapping[str, Geometry] = {
    "a30": _with_media(_cut(_FOUR_SLOTS, "6 12 24", (14, 28, 56), (5.81, 11.69, 23.4)), 4, 1, 2),
    "a100-40gb": _with_media(
        _cut(_EIGHT_SLOTS, "5 10 10 20 20 40", _AMPERE, (4.75, 9.7, 9.7, 19.6, 19.6, 39.4)), 8, 1, is_read=True
    ),
    # The 9.6 GiB of 1g.10gb vary with the driver.
    "a100-80gb": _with_media(
        _cut(_EIGHT_SLOTS, "10 20 20 40 40 80", _AMPERE, (9.6, 19.5, 19.5, 39.3, 39.3, 78.5)), 8, 1, is_read=True
    ),
    "h100-80gb": _with_media(
        _cut(_EIGHT_SLOTS, "10 20 20 40 40 80", _HOPPER, (9.75, 19.62, 19.62, 39.5, 39.5, 79.25)), 8, 1
    ),
    "h100-94gb": _with_media(_cut(_EIGHT_SLOTS, "12 24 24 47 47 94", _HOPPER), 8, 1),
    "h100-96gb": _with_media(
        _cut(_EIGHT_SLOTS, "12 24 24 48 48 96", _HOPPER, (11.0, 23.0, 23.0, 46.5, 46.5, 93.0)), 8, 1
    ),
    "h200-141gb": _with_media(_cut(_EIGHT_SLOTS, "18 35 35 71 71 141", _HOPPER, (16.0, 0, 32.5, 0, 0, 140.0)), 8, 1),
    # Blackwell: starts as on Hopper, whose fractions these are; RTX PRO 6000: as on the A30.
    "b200": _with_media(_cut(_EIGHT_SLOTS, "23 45 45 90 90 180", (18, 0, 0, 0, 0, 0)), 8, 1),
    "gb200": Geometry(_cut(_EIGHT_SLOTS, "23 47 47 93 93 186"), 8),
    "rtxpro6000": Geometry(_cut(_FOUR_SLOTS, "24 48 96"), 4),
}
"""By device kind."""
