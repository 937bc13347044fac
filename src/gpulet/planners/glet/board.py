"""What stands on each device while gpu-lets' artifact plans: parts, their tenants, memory, and latency beside neighbours."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gpulet.core.ports import Problem
from gpulet.device import Device, Size
from gpulet.interference import Interference, Side, footprint
from gpulet.model import Model
from gpulet.planners.glet.margins import Margins
from gpulet.profile import Curve, Use
from gpulet.units import SECOND

WHOLE = 100
_GIBIT = 1024**3 / 8


@dataclass(slots=True, eq=False)
class Tenant:
    """A model on a part: the rate it was placed for, its batch, the rows/s it gets."""

    model: Model
    rate: int
    batch: int
    throughput: float


@dataclass(slots=True, eq=False)
class Part:
    """A gpulet in the making: `share` in percent; `is_second` tells two halves of a device apart."""

    device: int
    share: int
    is_second: bool = False
    duty: float = 0.0
    occupancy: float = 0.0
    tenants: list[Tenant] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, int, bool]:
        """Where it lies."""
        return self.device, self.share, self.is_second

    def clear(self) -> None:
        """Undo a placement; the cut stays."""
        self.tenants.clear()
        self.duty = self.occupancy = 0.0


class Board:
    """The devices' parts. Latencies are nanoseconds as floats, with the latency ratio in them."""

    def __init__(
        self,
        problem: Problem,
        margins: Margins,
        shares: Sequence[int],
        interference: Interference | None,
        cuts: Sequence[Sequence[int]],
    ) -> None:
        self.problem = problem
        self.margins = margins
        self.shares = tuple(sorted(shares))
        self.interference = interference
        self.can_cut = not cuts
        self.devices = [_parts(i, cut) for i, cut in enumerate(cuts or [(WHOLE,)] * len(problem.devices))]
        self._sizes = sizes_by_share(problem.devices[0])
        self._curves: dict[tuple[str, int], Curve] = {}
        self._uses: dict[tuple[str, int], tuple[Use, ...]] = {}
        self._sides: dict[tuple[str, int, int], Side] = {}
        self._memory = [0] * len(self.devices)
        self._processes: set[tuple[int, int, bool]] = set()
        self._loaded: set[tuple[tuple[int, int, bool], str]] = set()

    def parts(self) -> Iterator[Part]:
        """Every part, device by device."""
        return (part for device in self.devices for part in device)

    def empty(self) -> list[Part]:
        """The parts without a tenant, largest first."""
        return sorted((part for part in self.parts() if not part.tenants), key=lambda part: -part.share)

    def cut(self, part: Part, share: int) -> Part:
        """Cut a whole device into `share` and the rest; the rest."""
        rest = Part(part.device, WHOLE - share, is_second=share == WHOLE - share)
        part.share = share
        self.devices[part.device].append(rest)
        return rest

    # latency --------------------------------------------------------------------------------------------------------

    def size(self, share: int) -> Size:
        """The device's size of that share."""
        return self._sizes[share]

    def limit(self, model: Model, share: int) -> int:
        """The largest batch that is considered."""
        return min(self.margins.max_batch, model.max_batch, len(self._curve(model, share)))

    def latency(self, model: Model, batch: int, share: int) -> float:
        """Alone."""
        return self._alone(model, batch, share) * self.margins.latency_ratio

    def latency_in(self, model: Model, batch: int, part: Part) -> float:
        """Beside what stands on the rest of the device."""
        return self.bare_latency(model, batch, part) * self.margins.latency_ratio

    def bare_latency(self, model: Model, batch: int, part: Part) -> float:
        """The same without the latency ratio."""
        alone = self._alone(model, batch, part.share)
        if not self.interference or alone == math.inf:
            return alone
        return alone + (alone - self._use(model, part.share, batch).host) * (self._factor(model, batch, part) - 1)

    def _factor(self, model: Model, batch: int, part: Part) -> float:
        """The worst of the co-runners, since models that share a part never run at once."""
        assert self.interference is not None
        neighbours = [p for p in self.devices[part.device] if p.place != part.place]
        others = [self._side(t.model, t.batch, p.share) for p in neighbours for t in p.tenants]
        victim = self._side(model, batch, part.share)
        return max((self.interference.pair(victim, other) for other in others), default=1.0)

    def _side(self, model: Model, batch: int, share: int) -> Side:
        key = model.name, share, batch
        if key not in self._sides:
            self._sides[key] = footprint(
                self.problem.profile, model.name, self._sizes[share].sms, share / WHOLE, batch
            ).side
        return self._sides[key]

    def host(self, model: Model, batch: int, share: int) -> float:
        """The part of the latency that is spent on the host."""
        return self._use(model, share, batch).host

    def _alone(self, model: Model, batch: int, share: int) -> float:
        """Endless where nobody has measured such a batch."""
        curve = self._curve(model, share)
        return curve[batch - 1] if batch <= len(curve) else math.inf

    def _curve(self, model: Model, share: int) -> Curve:
        key = model.name, share
        if key not in self._curves:
            self._curves[key] = self.problem.profile.curve(model.name, self._sizes[share].sms)
        return self._curves[key]

    def _use(self, model: Model, share: int, batch: int) -> Use:
        key = model.name, share
        if key not in self._uses:
            self._uses[key] = self.problem.profile.uses(model.name, self._sizes[share].sms)
        return self._uses[key][min(batch, len(self._uses[key])) - 1]

    # batches --------------------------------------------------------------------------------------------------------

    def saturated_batch(self, model: Model, share: int, latency: Callable[[int], float]) -> int:
        """The largest batch with 2 L(b) <= SLO; 0 when there is none."""
        return _largest(self.limit(model, share), lambda batch: 2 * latency(batch) <= model.slo)

    def residual_batch(self, model: Model, rate: int, share: int, latency: Callable[[int], float]) -> tuple[int, int]:
        """The largest batch with L(b) + b/rate <= SLO, and the rate: raised where only single rows can be in time."""
        batch = _largest(self.limit(model, share), lambda b: latency(b) + b * SECOND / rate <= model.slo)
        first = latency(1)
        if not batch and first < SECOND / rate and first < model.slo:
            return 1, int(SECOND / (model.slo - first) * self.margins.latency_ratio)
        return batch, rate

    # memory and network ---------------------------------------------------------------------------------------------

    def has_memory(self, model: Model, part: Part) -> bool:
        """Whether the model can be loaded here; a model that is loaded already costs nothing."""
        room = self.problem.devices[part.device].kind.memory * self.margins.memory_room
        if not room or not model.memory or self._is_loaded(model, part):
            return True
        return room - self._memory[part.device] > model.memory + self._process(part)

    def load(self, model: Model, part: Part) -> None:
        """Count the memory of a placement, once."""
        if not self._is_loaded(model, part):
            self._memory[part.device] += model.memory + self._process(part)
            self._processes.add(part.place)
            self._loaded.add((part.place, model.name))

    def unload(self, model: Model, part: Part) -> None:
        """Give the model's memory back; its process stays."""
        if self._is_loaded(model, part):
            self._memory[part.device] -= model.memory
            self._loaded.remove((part.place, model.name))

    def network_share(self, part: Part, tenant: Tenant) -> float:
        """The part of the tenant's throughput that the device's network still carries."""
        wanted = tenant.throughput * tenant.model.input_bytes
        left = self.margins.network_gbit * _GIBIT - self._traffic(part.device)
        return 1.0 if wanted <= left else max(left, 0.0) / wanted

    def is_network_full(self, device: int) -> bool:
        """Whether the placed throughputs need more than the device's network carries."""
        return self._traffic(device) > self.margins.network_gbit * _GIBIT

    def _traffic(self, device: int) -> float:
        return sum(t.throughput * t.model.input_bytes for part in self.devices[device] for t in part.tenants)

    def _is_loaded(self, model: Model, part: Part) -> bool:
        return (part.place, model.name) in self._loaded

    def _process(self, part: Part) -> int:
        return 0 if part.place in self._processes else self.margins.process_memory


def sizes_by_share(device: Device) -> dict[int, Size]:
    """Sizes by whole percent, the smaller of two that round alike; the largest is the whole, whatever it leaves over."""
    sizes = device.sizes()
    return {round(size.share_pct): size for size in reversed(sizes)} | {WHOLE: sizes[-1]}


def _parts(device: int, cut: Sequence[int]) -> list[Part]:
    return [Part(device, share, is_second=share in cut[:place]) for place, share in enumerate(cut)]


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """By bisection: latencies rise with the batch."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
