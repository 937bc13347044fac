"""An executor that answers after the profiled time. It works under both drivers: its clock is the driver's.

On partitioned devices a run takes what the profile says. On a `whole` device runs overlap: with n of them, of which those
of one priority want s_1 + s_2 + ... of the S SMs that others before them leave, each of those goes max(1, sum s / S) x
(1 + contention x (n - 1)) slower, and one that is left next to nothing ten times, as niceness 10 is. With an interference model the
device part of each run goes slower by what its neighbours on the same device cost. Whenever a neighbour starts or ends,
what is left of each run is re-timed.
"""

from collections.abc import Callable, Iterable

from gpulet.core.messages import (
    Adopt,
    BatchId,
    Build,
    Built,
    Carve,
    Finished,
    GpuletUp,
    Load,
    Loaded,
    Retire,
    Start,
    Unload,
    Unloaded,
)
from gpulet.device import Device, Mechanism
from gpulet.executors.base import Emit, Outputs, Result, Signature, Tensor, Timer
from gpulet.interference import Footprint, Interference, footprint
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.profile import Curve, Point, Profile
from gpulet.units import Duration, Instant

EMULATED = Signature(
    inputs=(Tensor("input", "FP32", (-1, -1)),), outputs=(Tensor("output", "FP32", (-1, 1)),), platform="emulated"
)
"""What every emulated model takes and gives: any row of numbers, answered by a zero."""


Noise = Callable[[Duration], Duration]
"""How long a run takes instead of what its profile says."""


_STARVED = 10.0


class _Overlapping:
    """A run with neighbours: how much work is left, and how many times slower than alone it goes now."""

    __slots__ = ("footprint", "left", "priority", "slowdown", "sms", "stamp")

    def __init__(self, left: float, sms: int, priority: int, footprint: Footprint) -> None:
        self.left = left
        self.sms = sms
        self.priority = priority
        self.footprint = footprint
        self.slowdown = 1.0
        self.stamp = 0


class _Crowd:
    """The runs that are on one device together."""

    def __init__(self, device: Device, interference: Interference | None) -> None:
        self.device = device
        self.interference = interference
        self.runs: dict[BatchId, _Overlapping] = {}
        self.since: Instant = 0

    def progress(self, now: Instant) -> None:
        """Take off what each run has done since the crowd last changed."""
        for run in self.runs.values():
            run.left -= (now - self.since) / run.slowdown
        self.since = now

    def pace(self) -> None:
        """Say how fast each run goes beside those that are here now."""
        crowding = self._crowding() if self.device.mechanism is Mechanism.WHOLE else {}
        for run in self.runs.values():
            run.slowdown = crowding.get(run.priority, 1.0) * self._interference(run)

    def _crowding(self) -> dict[int, float]:
        """By priority."""
        wanted: dict[int, int] = {}
        for run in self.runs.values():
            wanted[run.priority] = wanted.get(run.priority, 0) + run.sms
        toll = 1 + self.device.contention * max(0, len(self.runs) - 1)
        crowding, left = {}, self.device.kind.sms
        for priority in sorted(wanted):
            crowding[priority] = toll * max(1.0, min(_STARVED, wanted[priority] / left) if left else _STARVED)
            left = max(0, left - wanted[priority])
        return crowding

    def _interference(self, run: _Overlapping) -> float:
        if self.interference is None or len(self.runs) == 1:
            return 1.0
        others = [other.footprint.side for other in self.runs.values() if other is not run]
        factor = self.interference.slowdown(run.footprint.side, others)
        return run.footprint.slowed(factor) / run.footprint.latency


def _place(g: Gpulet) -> tuple[int, int, int, int]:
    return g.device, g.size.sms, g.processes, g.priority


class Simulated:
    """Replies with `Finished` after the profile's latency for (model, size, rows)."""

    def __init__(
        self,
        profile: Profile,
        plan: Plan,
        timer: Timer,
        emit: Emit,
        *,
        load_time: Duration = 0,
        build_time: Duration = 0,
        keeps_rows: bool = False,
        interference: Interference | None = None,
        noise: Noise | None = None,
    ) -> None:
        self.load_times: dict[str, Duration] = {}
        self._noise = noise
        self._profile = profile
        self._timer = timer
        self._emit = emit
        self._load_time = load_time
        self._keeps_rows = keeps_rows
        self._rows: dict[BatchId, int] = {}
        self._interference = interference
        self._build_time = build_time
        self._gpulets = {g.id: _place(g) for g in plan.gpulets}
        self._building: dict[int, list[GpuletId]] = {}
        crowded = (d for d in plan.devices if interference or d.mechanism is Mechanism.WHOLE)
        self._crowds = {d.index: _Crowd(d, interference) for d in crowded}
        self._footprints: dict[tuple[str, int, int, int], Footprint] = {}
        self._curves: dict[tuple[str, int, str, int], Curve] = {}
        self._stamps: dict[int, tuple[_Crowd, BatchId, int]] = {}
        self._stamp = 0

    def learn(self, points: Iterable[Point]) -> None:
        """What runs of a model take that was not there before."""
        self._profile = self._profile.joined(points)

    def carve(self) -> None:
        """Bring every gpulet up, at once."""
        for gpulet in self._gpulets:
            self._emit(GpuletUp(gpulet))

    def start(self, command: Start) -> None:
        """Finish the batch after its profiled time."""
        if self._keeps_rows:
            self._rows[command.batch] = command.rows
        on = command.on
        device, sms, processes, priority = (on.device, on.size, 1, 0) if isinstance(on, Carve) else self._gpulets[on]
        key = (command.model, sms, command.shape, processes)
        curve = self._curves.get(key)
        if curve is None:
            curve = self._curves[key] = self._profile.curve(*key)
        latency = curve[command.rows - 1]
        if self._noise:
            latency = self._noise(latency)
        if device in self._crowds:
            self._join(self._crowds[device], command, latency, (sms, processes, priority))
        else:
            self._timer.at(self._timer.now() + latency, self._finish, command.batch)

    def outputs(self, batch: BatchId) -> Outputs:
        """Zeros of the emulated signature, as many rows as the batch had."""
        rows = self._rows.pop(batch)
        data = memoryview(bytes(4 * rows))
        return (Result(EMULATED.outputs[0], (rows, 1), data),)

    async def close(self) -> None:
        """Nothing to stop."""

    def load(self, command: Load) -> None:
        """Be resident after the modelled load time."""
        self._timer.at(
            self._timer.now() + self._load_time, lambda _: self._emit(Loaded(command.model, command.device)), 0
        )

    def unload(self, command: Unload) -> None:
        """Leave at once."""
        self._timer.at(self._timer.now(), lambda _: self._emit(Unloaded(command.model, command.device)), 0)

    def build(self, command: Build) -> None:
        """New gpulets are up after the modelled time to build them."""
        planned = {g.id: _place(g) for g in command.plan.gpulets}
        self._building[command.number] = [number for number in planned if number not in self._gpulets]
        self._gpulets.update(planned)
        self._timer.at(self._timer.now() + self._build_time, self._built, command.number)

    def adopt(self, command: Adopt) -> None:
        """What was built knows its place; devices that are not cut any more have runs that overlap."""
        for device in command.plan.devices:
            if device.mechanism is Mechanism.WHOLE and device.index not in self._crowds:
                self._crowds[device.index] = _Crowd(device, self._interference)
            elif device.index in self._crowds:
                self._crowds[device.index].device = device

    def retire(self, command: Retire) -> None:
        """Its number may be another's from now on."""
        del self._gpulets[command.gpulet]

    def _built(self, number: int) -> None:
        for gpulet in self._building.pop(number):
            self._emit(GpuletUp(gpulet))
        self._emit(Built(number))

    def _finish(self, batch: BatchId) -> None:
        self._emit(Finished(batch))

    def _join(self, crowd: _Crowd, command: Start, latency: Duration, place: tuple[int, int, int]) -> None:
        sms, processes, priority = place
        crowd.progress(self._timer.now())
        key = command.model, sms, command.rows, processes
        if key not in self._footprints:
            share = sms / crowd.device.kind.sms
            self._footprints[key] = footprint(self._profile, command.model, sms, share, command.rows, processes)
        crowd.runs[command.batch] = _Overlapping(latency, sms, priority, self._footprints[key])
        self._retime(crowd)

    def _retime(self, crowd: _Crowd) -> None:
        """Everybody's end has moved: earlier wake-ups are void by their stamp."""
        now = self._timer.now()
        crowd.pace()
        for batch, run in crowd.runs.items():
            self._stamp += 1
            run.stamp = self._stamp
            self._stamps[self._stamp] = (crowd, batch, self._stamp)
            self._timer.at(now + max(0, round(run.left * run.slowdown)), self._leave, self._stamp)

    def _leave(self, stamp: int) -> None:
        crowd, batch, _ = self._stamps.pop(stamp)
        run = crowd.runs.get(batch)
        if run is None or run.stamp != stamp:
            return
        crowd.progress(self._timer.now())
        del crowd.runs[batch]
        self._retime(crowd)
        self._finish(batch)
