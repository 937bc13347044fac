"""Device kinds, the sizes they can be cut into, and which gpulets fit on one device together.

A size is a whole number of SMs (of cores, on a CPU) with the share that its mechanism is told. Numbers that no source
gives are absent rather than guessed: asking for them raises `ConfigError`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from gpulet.errors import ConfigError
from gpulet.mig import GEOMETRIES, NO_MIG, Geometry, MigType, clashes
from gpulet.units import GIB

GREEN_GROUP = 8
"""SMs in one group of a Hopper green context (specification of cuDevSmResourceSplitByCount, compute capability 9.0)."""


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
class Kind:
    """A kind of device: SMs, memory in bytes, and what is known of its MIG types.

    `sms` is 0 where no source gives them: such a kind makes no `Device` before somebody has read them (`with_mig_sms`).
    """

    name: str
    sms: int
    memory: int
    geometry: Geometry = NO_MIG
    mps_shares: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)

    @property
    def mig_types(self) -> tuple[MigType, ...]:
        """All its MIG types; none: it has no MIG."""
        return self.geometry.types


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the fleet; `index` is its place in the fleet, `contention` slows runs that overlap on `whole`.

    `resizes`: under MPS, processes of every size stand ready, so that runs may each have a size of their own.
    """

    index: int
    kind: Kind
    mechanism: Mechanism
    contention: float = 0.0
    resizes: bool = False

    def __post_init__(self) -> None:
        _refuse_unread(self.kind)

    @property
    def resizes_runs(self) -> bool:
        """Whether two runs, one after the other, may have different sizes: contexts of green groups stand ready anyway."""
        return self.mechanism is Mechanism.GREEN or (self.resizes and self.mechanism is Mechanism.MPS)

    def sizes(self) -> tuple[Size, ...]:
        """The sizes this device can be cut into, ascending."""
        return sizes(self.kind, self.mechanism)

    def run_sizes(self) -> tuple[Size, ...]:
        """The sizes of runs that may each have another: of green contexts the binary buddies, which can all stand ready."""
        if self.mechanism is not Mechanism.GREEN:
            return self.sizes()
        return tuple(size for size in self.sizes() if (size.sms // GREEN_GROUP).bit_count() == 1)

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


GPULETS_SHARES = (20, 40, 50, 60, 80, 100)
"""The six partition sizes of gpu-lets (ATC'22, section 4)."""


def _cut_by_mig(name: str, sms: int, gib: int) -> Kind:
    return Kind(name, sms, gib * GIB, GEOMETRIES[name])


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("rtx2080ti", 68, 11 * GIB, mps_shares=GPULETS_SHARES),
        Kind("v100", 80, 16 * GIB),
        Kind("t4", 40, 16 * GIB),
        _cut_by_mig("a30", 56, 24),
        _cut_by_mig("a100-40gb", 108, 40),
        _cut_by_mig("a100-80gb", 108, 80),
        _cut_by_mig("h100-80gb", 132, 80),
        _cut_by_mig("h100-94gb", 132, 94),
        _cut_by_mig("h100-96gb", 132, 96),
        _cut_by_mig("h200-141gb", 132, 141),
        _cut_by_mig("b200", 148, 180),
        _cut_by_mig("gb200", 0, 186),
        _cut_by_mig("rtxpro6000", 0, 96),
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
            _refuse_unread(kind)
            return (Size(kind.sms, 100.0, "whole"),)
        case Mechanism.CPU:
            return tuple(Size(n, 100 * n / kind.sms, f"{n} cores") for n in range(1, kind.sms + 1))
        case Mechanism.MPS:
            return tuple(mps_size(kind, share) for share in kind.mps_shares)
        case Mechanism.GREEN:
            _refuse_unread(kind)
            groups = range(1, kind.sms // GREEN_GROUP + 1)
            return tuple(Size(n * GREEN_GROUP, 100 * n * GREEN_GROUP / kind.sms, f"{n} groups") for n in groups)
        case Mechanism.MIG:
            return _mig_sizes(kind)


def _mig_sizes(kind: Kind) -> tuple[Size, ...]:
    """Plain types alone: the others differ in memory and engines, which no profile tells apart."""
    if not kind.mig_types:
        msg = f"device kind {kind.name} has no MIG; kinds that have: {', '.join(GEOMETRIES)}"
        raise ConfigError(msg)
    unread = [t.label for t in kind.geometry.plain if not t.sms]
    if unread:
        asked = ", ".join(f'"{label}" = SMS' for label in unread)
        msg = f"device kind {kind.name}: nobody has read the SMs of MIG types {', '.join(unread)}; read them from the "
        raise ConfigError(msg + f"device (nvidia-smi mig -lgip) and write mig_sms = {{{asked}}} under [[devices]]")
    return tuple(Size(t.sms, 100 * t.sms / kind.sms, t.label) for t in kind.geometry.plain)


def with_mig_sms(kind: Kind, reading: Mapping[str, int]) -> Kind:
    """The kind with the SMs of its MIG types as read from a device.

    Where the SMs of the whole kind are not on record, its widest type stands for all of it: in MIG mode there is no more.
    Raises `ConfigError` for a label that the kind does not have, and for more SMs than its device or a wider type has.
    """
    known = {t.label: t for t in kind.mig_types}
    for label in reading:
        if label not in known:
            msg = f"mig_sms: device kind {kind.name} has no MIG type {label}; it has {', '.join(known) or 'none'}"
            raise ConfigError(msg)
    types = tuple(replace(t, sms=reading.get(t.label, t.sms)) for t in kind.mig_types)
    read = replace(kind, geometry=replace(kind.geometry, types=types))
    read = replace(read, sms=kind.sms or max(read.geometry.plain, key=lambda t: t.slices).sms)
    for label, sms in reading.items():
        if read.sms and sms > read.sms:
            msg = f"mig_sms: {label} = {sms}, but a {kind.name} has {read.sms} SMs"
            raise ConfigError(msg)
    for narrow, wide in pairwise(t for t in read.geometry.plain if t.sms):
        if narrow.sms >= wide.sms:
            msg = f"mig_sms: {narrow.label} has {narrow.sms} SMs, {wide.label} only {wide.sms}"
            raise ConfigError(msg)
    return read


def _refuse_unread(kind: Kind) -> None:
    if not kind.sms:
        msg = f"device kind {kind.name}: its SMs are not on record; cut it by MIG, with mig_sms read from the device"
        raise ConfigError(msg)


def mps_size(kind: Kind, share_pct: float) -> Size:
    """An MPS percentage as SMs: 20 % of a 2080 Ti (68 SMs) is 14 SMs with nominal share 20."""
    _refuse_unread(kind)
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
            spots = ((p.size.label, p.offset) for p in placed)
            return tuple(f"device {device.index}: {why}" for why in clashes(device.kind.geometry, spots))


def _overlaps(device: Device, spans: list[tuple[int, int, str]], end: int) -> tuple[str, ...]:
    """Half-open intervals must be disjoint and inside [0, end)."""
    outside = [f"device {device.index}: {name} at {a} ends at {b} of {end}" for a, b, name in spans if b > end or a < 0]
    clashes = [
        f"device {device.index}: {name} at {start} overlaps {other} at {earlier}"
        for (earlier, until, other), (start, _, name) in pairwise(sorted(spans))
        if start < until
    ]
    return tuple(outside + clashes)
