"""Counts of sizes on equal devices, however they are cut: do they fit, and where do they lie.

For planners that decide how many gpulets of each size there are before they decide where. On MIG the answer is exact
(`gpulet.mig`). Elsewhere it is first fit, largest first: what it places does fit; what it refuses a cleverer packing may
hold, for it takes up to 11/9 of the fewest devices and 6/9 of one (Dósa 2007). For gpulets of a device's own sizes, which
are few and mostly divide it, that is exact enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from gpulet import mig
from gpulet.device import Device, Mechanism, Placement, Size
from gpulet.errors import PlanError

_ROUNDING = 1e-9


class Cutter:
    """Equal devices and what can be cut from them, within `room`.

    `slices`: on MIG, so many compute slices at most, for comparisons at equal totals; 0: all there are. Raises
    `PlanError` for no or unequal devices, for a budget of slices elsewhere, and one beyond what there is.
    """

    def __init__(self, devices: Sequence[Device], slices: int = 0) -> None:
        kinds = {(d.kind.name, d.mechanism): d for d in devices}
        if len(kinds) != 1:
            found = ", ".join(f"{kind} by {mechanism}" for kind, mechanism in kinds) or "none"
            msg = f"devices must be equal to be cut by counts; there are {found}"
            raise PlanError(msg)
        self._devices = tuple(devices)
        self._device = devices[0]
        self.is_mig = self._device.mechanism is Mechanism.MIG
        self.sizes: tuple[Size, ...] = self._device.sizes()
        geometry = self._device.kind.geometry
        total = geometry.slices * len(devices) if self.is_mig else sum(d.room for d in devices)
        if slices and (not self.is_mig or not 0 < slices <= total):
            what = f"of the {total:g} there are" if self.is_mig else f"on devices that {self._device.mechanism} cuts"
            msg = f"a budget of {slices} compute slices {what}"
            raise PlanError(msg)
        self.room: float = slices or total

    def units(self, size: Size) -> float:
        """What a size takes of `room`: compute slices on MIG, percent under MPS, SMs or cores elsewhere."""
        return self._device.kind.geometry.find(size.label).slices if self.is_mig else self._device.length(size)

    def fits(self, counts: Mapping[Size, int]) -> bool:
        """Whether so many gpulets of each size can be cut within the room."""
        if sum(self.units(size) * n for size, n in counts.items()) > self.room + _ROUNDING:
            return False
        if self.is_mig:
            return mig.fits(self._device.kind.geometry, _labelled(counts), len(self._devices))
        return len(tuple(self._first_fit(counts))) == sum(counts.values())

    def pack(self, counts: Mapping[Size, int]) -> tuple[tuple[int, Placement], ...]:
        """Each gpulet's device index and place, by device; raises `PlanError` with the counts when they do not fit."""
        if not self.fits(counts):
            wanted = ", ".join(f"{n} x {size.label or size.sms}" for size, n in counts.items() if n)
            msg = f"{wanted} do not fit on {len(self._devices)} x {self._device.kind.name}, {self.room:g} units of room"
            raise PlanError(msg)
        placed = self._instances(counts) if self.is_mig else self._first_fit(counts)
        return tuple(sorted(placed, key=lambda spot: (spot[0], spot[1].offset)))

    def _instances(self, counts: Mapping[Size, int]) -> Iterator[tuple[int, Placement]]:
        sizes = {size.label: size for size in counts}
        for i in mig.pack(self._device.kind.geometry, _labelled(counts), len(self._devices)):
            yield self._devices[i.gpu].index, Placement(sizes[i.type.label], i.start)

    def _first_fit(self, counts: Mapping[Size, int]) -> Iterator[tuple[int, Placement]]:
        """Those that find a place, largest first."""
        taken = dict.fromkeys((d.index for d in self._devices), 0.0)
        largest_first = sorted(counts.items(), key=lambda item: (-self.units(item[0]), item[0]))
        for size in chain.from_iterable([size] * n for size, n in largest_first):
            length = self.units(size)
            device = next((d.index for d in self._devices if taken[d.index] + length <= d.room + _ROUNDING), None)
            if device is None:
                return
            yield device, Placement(size, round(taken[device]))
            taken[device] += length


def _labelled(counts: Mapping[Size, int]) -> dict[str, int]:
    return {size.label: n for size, n in counts.items()}
