"""How a device can be cut into gpulets of given sizes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf

from gpulet.device import Device, Mechanism, Size
from gpulet.errors import PlanError

MOST_CUTS = 5_000
_ROUNDING = 1e-9


def equal_devices(devices: Sequence[Device]) -> list[tuple[Device, ...]]:
    """Devices grouped by kind and mechanism; raises `PlanError` for MIG, whose cuts depend on places."""
    groups: dict[tuple[str, Mechanism], list[Device]] = {}
    for device in devices:
        if device.mechanism is Mechanism.MIG:
            msg = f"device {device.index}: exact plans cut mps, green, cpu and whole devices, not mig"
            raise PlanError(msg)
        groups.setdefault((device.kind.name, device.mechanism), []).append(device)
    return [tuple(group) for group in groups.values()]


def cuts(device: Device, sizes: Sequence[Size], most_gpulets: int | None) -> tuple[Counter[Size], ...]:
    """Every way to cut the device into these sizes to which nothing can be added.

    Raises `PlanError` when there are too many to choose from.
    """
    found = tuple(islice(_fillings(device, sorted(sizes, reverse=True), most_gpulets), MOST_CUTS + 1))
    if len(found) > MOST_CUTS:
        msg = f"device {device.index} can be cut into {len(sizes)} sizes in more than {MOST_CUTS} ways"
        raise PlanError(msg + ": too many for an exact plan")
    return found


def _fillings(device: Device, sizes: Sequence[Size], most: int | None) -> Iterator[Counter[Size]]:
    def fill(place: int, room: float, left: float) -> Iterator[Counter[Size]]:
        each = length(device, sizes[place])
        count = int(min(left, (room + _ROUNDING) // each))
        if place == len(sizes) - 1:
            yield Counter({sizes[place]: count})
            return
        for taken in range(count, -1, -1):
            for rest in fill(place + 1, room - taken * each, left - taken):
                yield rest + Counter({sizes[place]: taken})

    if sizes:
        room = 100.0 if device.mechanism is Mechanism.MPS else device.kind.sms
        yield from fill(0, room, inf if most is None else most)


def length(device: Device, size: Size) -> float:
    """What a size takes of its device: percent under MPS, SMs or cores elsewhere."""
    return size.share_pct if device.mechanism is Mechanism.MPS else size.sms
