"""Device kinds, the sizes they can be cut into, and which gpulets fit on one device together.

A size is a whole number of SMs (of cores, on a CPU) with the share that its mechanism is told. Numbers that no source
gives are absent rather than guessed: asking for them raises `ConfigError`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from gpulet.errors import ConfigError
from gpulet.units import MIB

GIB = 1024 * MIB
GREEN_GROUP = 8
"""SMs in one group of a Hopper green context (specification of cuDevSmResourceSplitByCount, compute capability 9.0)."""
MIG_MEMORY_SLICES = 8


class Mechanism(StrEnum):
    """How a device is cut into gpulets."""

    WHOLE = "whole"
    MPS = "mps"
    MIG = "mig"
    GREEN = "green"
    CPU = "cpu"


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """A gpulet's share of its device: whole SMs, the nominal share in percent, and the mechanism's own label."""

    sms: int
    share_pct: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class MigType:
    """One of NVIDIA's MIG profiles: memory slices `span` taken from any of the slots `starts`."""

    label: str
    sms: int
    span: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device: SMs, memory in bytes, and what is known of its MIG types."""

    name: str
    sms: int
    memory: int
    mig_types: tuple[MigType, ...] = ()
    mps_shares: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the fleet; `index` is its place in the fleet, `contention` slows runs that overlap on `whole`."""

    index: int
    kind: Kind
    mechanism: Mechanism
    contention: float = 0.0

    def sizes(self) -> tuple[Size, ...]:
        """The sizes this device can be cut into, ascending."""
        return sizes(self.kind, self.mechanism)

    def length(self, size: Size) -> float:
        """What a size takes of the device, in its mechanism's unit: percent under MPS, SMs or cores elsewhere."""
        return size.share_pct if self.mechanism is Mechanism.MPS else size.sms

    @property
    def room(self) -> float:
        """All of the device in that unit."""
        return 100.0 if self.mechanism is Mechanism.MPS else self.kind.sms


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one gpulet lies on its device: its size and its first SM, core or MIG slot."""

    size: Size
    offset: int


def _a100_types(*labels: str) -> tuple[MigType, ...]:
    """MIG User Guide, A100: the SMs of 1g..7g are 14 a slice, the starts lie on the memory-slice axis."""
    one, two, three, four, seven = labels
    return (
        MigType(one, 14, 1, (0, 1, 2, 3, 4, 5, 6)),
        MigType(two, 28, 2, (0, 2, 4)),
        MigType(three, 42, 4, (0, 4)),
        MigType(four, 56, 4, (0,)),
        MigType(seven, 98, 8, (0,)),
    )


GPULETS_SHARES = (20, 40, 50, 60, 80, 100)
"""The six partition sizes of gpu-lets (ATC'22, section 4)."""

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("rtx2080ti", 68, 11 * GIB, mps_shares=GPULETS_SHARES),
        Kind("v100", 80, 16 * GIB),
        Kind("t4", 40, 16 * GIB),
        Kind("a30", 56, 24 * GIB),
        Kind("a100-40gb", 108, 40 * GIB, _a100_types("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")),
        Kind("a100-80gb", 108, 80 * GIB, _a100_types("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")),
        Kind("h100-80gb", 132, 80 * GIB),
        Kind("h200-141gb", 132, 141 * GIB),
        Kind("b200", 148, 180 * GIB),
    )
}


def cpu_kind(cores: int, memory: int = 0) -> Kind:
    """A machine as a device: its cores are its SMs."""
    return Kind("cpu", cores, memory)


def find_kind(name: str) -> Kind:
    """The kind of that name; raises `ConfigError` that lists the known ones."""
    if name not in KINDS:
        msg = f"unknown device kind {name!r}; known are cpu, {', '.join(KINDS)}"
        raise ConfigError(msg)
    return KINDS[name]


def sizes(kind: Kind, mechanism: Mechanism) -> tuple[Size, ...]:
    """The sizes that `mechanism` can cut `kind` into, ascending; raises `ConfigError` where nobody has written them."""
    match mechanism:
        case Mechanism.WHOLE:
            return (Size(kind.sms, 100.0, "whole"),)
        case Mechanism.CPU:
            return tuple(Size(n, 100 * n / kind.sms, f"{n} cores") for n in range(1, kind.sms + 1))
        case Mechanism.MPS:
            return tuple(mps_size(kind, share) for share in kind.mps_shares)
        case Mechanism.GREEN:
            groups = range(1, kind.sms // GREEN_GROUP + 1)
            return tuple(Size(n * GREEN_GROUP, 100 * n * GREEN_GROUP / kind.sms, f"{n} groups") for n in groups)
        case Mechanism.MIG:
            if not kind.mig_types:
                msg = f"device kind {kind.name} has no MIG types on record; known for a100-40gb and a100-80gb"
                raise ConfigError(msg)
            return tuple(Size(t.sms, 100 * t.sms / kind.sms, t.label) for t in kind.mig_types)


def mps_size(kind: Kind, share_pct: float) -> Size:
    """An MPS percentage as SMs: 20 % of a 2080 Ti (68 SMs) is 14 SMs with nominal share 20."""
    return Size(max(1, round(kind.sms * share_pct / 100)), float(share_pct), f"{share_pct:g} %")


def overcut(device: Device, placements: Iterable[Placement]) -> tuple[str, ...]:
    """Why these gpulets cannot stand on `device` together: one line each, none when they can."""
    placed = tuple(placements)
    match device.mechanism:
        case Mechanism.WHOLE:
            return ()
        case Mechanism.MPS:
            total = sum(p.size.share_pct for p in placed)
            return (f"device {device.index} is cut into {total:g} of its 100 %",) if total > 100 + 1e-9 else ()
        case Mechanism.CPU | Mechanism.GREEN:
            return _overlaps(device, [(p.offset, p.offset + p.size.sms, p.size.label) for p in placed], device.kind.sms)
        case Mechanism.MIG:
            return _mig_overcut(device, placed)


def _mig_overcut(device: Device, placed: tuple[Placement, ...]) -> tuple[str, ...]:
    types = {t.label: t for t in device.kind.mig_types}
    wrong = [
        f"device {device.index}: {p.size.label} cannot start at slot {p.offset}"
        for p in placed
        if p.size.label not in types or p.offset not in types[p.size.label].starts
    ]
    if wrong:
        return tuple(wrong)
    spans = [(p.offset, p.offset + types[p.size.label].span, p.size.label) for p in placed]
    return _overlaps(device, spans, MIG_MEMORY_SLICES)


def _overlaps(device: Device, spans: list[tuple[int, int, str]], end: int) -> tuple[str, ...]:
    """Half-open intervals must be disjoint and inside [0, end)."""
    outside = [f"device {device.index}: {name} at {a} ends at {b} of {end}" for a, b, name in spans if b > end or a < 0]
    clashes = [
        f"device {device.index}: {name} at {start} overlaps {other} at {earlier}"
        for (earlier, until, other), (start, _, name) in pairwise(sorted(spans))
        if start < until
    ]
    return tuple(outside + clashes)
