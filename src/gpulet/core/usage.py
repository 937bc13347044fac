"""What batches make of devices: SM time and switches. While it runs, a batch holds all SMs of its gpulet or carve.

`busy` counts the SMs that running batches hold, `useful` of each at most its model's knee (D-STACK, Dhakal et al., TCC
2024: what is held beyond the knee is held in vain), `allocated` what is given out: gpulets all the time, carves while
they run. On an uncut device batches may want more SMs than there are: together they count for all of them, by an exact
integral from each start or end to the next. How active SMs are only hardware can tell: that is no measure of ours.
A batch counts once it has ended, answered or failed.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from gpulet.core.histogram import Histogram
from gpulet.core.messages import Carve, Start
from gpulet.device import Mechanism
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import Duration, Instant


class DeviceRow(TypedDict):
    """Shares of a device's SM-time: in running batches, given out, and of use (as above); switches and resizes.

    A switch is a start where another model ran before: on the same gpulet, or of carves on the same device. A resize is
    a carve of another size than the last one of its model on the device.
    """

    busy: float
    allocated: float
    useful: float
    in_use: float
    switches: int
    resizes: int


@dataclass(slots=True)
class DeviceTime:
    """SM-nanoseconds of one device."""

    busy: float = 0
    useful: float = 0
    carved: float = 0


@dataclass(slots=True)
class ModelTime:
    """How long a model's batches ran in all, and the same times the share of the device that each held."""

    ran: Duration = 0
    area: float = 0.0


NO_TIME: Final = ModelTime()


@dataclass(slots=True)
class DeviceUse:
    """One device's counters; `gpulet_sms` are those in gpulets.

    `is_carved`: its runs bring their sizes, and gpulets of the plan only say which ones to begin with (GSLICE).
    """

    sms: int
    gpulet_sms: float
    since: Instant
    is_in_use: bool = False
    switches: int = 0
    resizes: int = 0
    is_carved: bool = False
    used: Duration = 0
    _given: float = 0.0
    _model: str = ""
    _sizes: dict[str, int] = field(default_factory=dict)

    def carve(self, model: str, size: int) -> None:
        """A run of this size starts."""
        self.is_carved = True
        if self._model != model:
            self.switches += bool(self._model)
            self._model = model
        before = self._sizes.get(model)
        if before != size:
            self.resizes += before is not None
            self._sizes[model] = size

    def give(self, now: Instant, sms: float, *, is_in_use: bool) -> None:
        """From now on so many SMs are in gpulets, and the device is in use or not."""
        passed = max(0, now - self.since)
        self._given += passed * self.gpulet_sms
        self.used += passed * self.is_in_use
        self.since, self.gpulet_sms, self.is_in_use = max(now, self.since), sms, is_in_use

    def report(self, time: DeviceTime, ends: Instant, window: Duration) -> DeviceRow:
        """Shares of all SMs during `window`, which `ends` then."""
        self.give(ends, self.gpulet_sms, is_in_use=self.is_in_use)
        whole = window * self.sms
        allocated = time.carved / whole if self.is_carved else min(1.0, self._given / whole)
        return {
            "busy": min(1.0, time.busy / whole),
            "allocated": allocated,
            "useful": min(1.0, time.useful / whole),
            "in_use": min(1.0, self.used / window),
            "switches": self.switches,
            "resizes": self.resizes,
        }


@dataclass(slots=True)
class GpuletUse:
    """One gpulet's answered batches: how long they ran, how long they were predicted to; `held` SMs are its own alone."""

    device: int
    sms: int
    held: float
    of: DeviceUse
    model: str = ""
    busy: Duration = 0
    predicted: Duration = 0
    batches: int = 0
    rows: int = 0
    run: Histogram = field(default_factory=Histogram)

    def switch(self, model: str) -> None:
        """Another model than the last one runs, or the first one."""
        self.of.switches += bool(self.model)
        self.model = model


@dataclass(slots=True)
class _Crowd:
    """The batches that overlap on an uncut device: what they want now, and what that came to until `since`."""

    sms: int
    since: Instant
    time: DeviceTime = field(default_factory=DeviceTime)
    _held: float = 0
    _useful: float = 0

    def shift(self, now: Instant, held: float, useful: float) -> None:
        """From now on so much more is wanted; less, below 0."""
        ran = now - self.since
        self.time.busy += ran * min(self.sms, self._held)
        self.time.useful += ran * min(self.sms, self._useful)
        self.since = now
        self._held += held
        self._useful += useful


class Usage:
    """Devices and gpulets by their batches. `knees` are SMs by model; where nobody says, every SM held is of use."""

    def __init__(self, plan: Plan, knees: Mapping[str, int], begins: Instant) -> None:
        self._knees = knees
        self._begins = self._last = begins
        self.devices = {d.index: DeviceUse(d.kind.sms, 0.0, begins) for d in plan.devices}
        self.gpulets: dict[GpuletId, GpuletUse] = {}
        self._past_devices = {d.index: DeviceTime() for d in plan.devices}
        self._past_models: defaultdict[str, ModelTime] = defaultdict(ModelTime)
        uncut = [d for d in plan.devices if d.mechanism is Mechanism.WHOLE]
        self._crowds = {d.index: _Crowd(d.kind.sms, begins) for d in uncut}
        self._ran: defaultdict[tuple[GpuletId | Carve, str], Duration] = defaultdict(int)
        self.adopt(begins, plan)

    def adopt(self, now: Instant, plan: Plan) -> None:
        """The plan is in force. A gpulet that is in none any more is known until it is retired."""
        used = plan.in_use or self.devices.keys()  # where a plan says nothing, runs may be anywhere
        for device in plan.devices:
            sms = sum(_held(g) for g in plan.gpulets if g.device == device.index)
            self.devices[device.index].give(now, sms, is_in_use=device.index in used)
        for g in plan.gpulets:
            if g.id not in self.gpulets:
                self.gpulets[g.id] = GpuletUse(g.device, g.size.sms, _held(g), self.devices[g.device])

    def retire(self, number: GpuletId) -> None:
        """Its number may be another's from now on; what ran there stays counted."""
        for on, model in [key for key in self._ran if key[0] == number]:
            self._account(on, model, self._ran.pop((on, model)), self._past_devices, self._past_models)
        del self.gpulets[number]

    def begin(self, now: Instant, start: Start) -> None:
        """A batch starts."""
        on, model = start.on, start.model
        if isinstance(on, Carve):
            self.devices[on.device].carve(model, on.size)
        else:
            gpulet = self.gpulets[on]
            if gpulet.model != model:
                gpulet.switch(model)
        if self._crowds:
            self._shift(now, start, 1)

    def end(self, now: Instant, start: Start, ran: Duration) -> None:
        """A batch has ended, answered or failed."""
        self._ran[start.on, start.model] += ran
        self._last = now
        if self._crowds:
            self._shift(now, start, -1)

    def by_device(self) -> dict[int, DeviceTime]:
        """SM time of each device."""
        times, _ = self._times()
        for device, crowd in self._crowds.items():
            times[device].busy, times[device].useful = crowd.time.busy, crowd.time.useful
        return times

    def by_model(self) -> dict[str, ModelTime]:
        """Time and area of each model that ran."""
        return self._times()[1]

    def _times(self) -> tuple[dict[int, DeviceTime], defaultdict[str, ModelTime]]:
        devices = {index: replace(time) for index, time in self._past_devices.items()}
        models = defaultdict(ModelTime, {name: replace(time) for name, time in self._past_models.items()})
        for (on, model), ran in self._ran.items():
            self._account(on, model, ran, devices, models)
        return devices, models

    def _account(
        self,
        on: GpuletId | Carve,
        model: str,
        ran: Duration,
        devices: Mapping[int, DeviceTime],
        models: defaultdict[str, ModelTime],
    ) -> None:
        index, held, useful = self._place(on, model)
        device = devices[index]
        device.busy += ran * held
        device.useful += ran * useful
        device.carved += ran * held if isinstance(on, Carve) else 0
        models[model].ran += ran
        models[model].area += ran * held / self.devices[index].sms

    def report(self, duration: Duration) -> list[DeviceRow]:
        """By device, over the run's duration or until its last batch ended, whichever is longer: no share exceeds 1."""
        window = max(duration, self._last - self._begins)
        times, ends = self.by_device(), self._begins + window
        return [device.report(times[index], ends, window) for index, device in self.devices.items()] if window else []

    def _shift(self, now: Instant, start: Start, sign: int) -> None:
        device, held, useful = self._place(start.on, start.model)
        if device in self._crowds:
            self._crowds[device].shift(now, sign * held, sign * useful)
            self._last = now

    def _place(self, on: GpuletId | Carve, model: str) -> tuple[int, float, float]:
        """Its device, the SMs that a batch of the model holds there, and those within the model's knee."""
        device, held = (
            (on.device, on.size) if isinstance(on, Carve) else (self.gpulets[on].device, self.gpulets[on].held)
        )
        return device, held, min(held, self._knees.get(model, held))


def _held(gpulet: Gpulet) -> float:
    """Its SMs, evenly among the processes that share them; a whole number wherever there is but one."""
    return gpulet.size.sms if gpulet.fellows == 1 else gpulet.size.sms / gpulet.fellows
