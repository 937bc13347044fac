"""An executor that answers after the profiled time. It works under both drivers: its clock is the driver's.

On partitioned devices a run takes what the profile says. On a `whole` device runs overlap: with n of them that want
s_1 + ... + s_n of S SMs, each goes max(1, sum s / S) x (1 + contention x (n - 1)) slower; whenever a neighbour starts or
ends, what is left of each run is re-timed.
"""

from gpulet.core.messages import BatchId, Carve, Finished, GpuletUp, Load, Loaded, Start, Unload, Unloaded
from gpulet.device import Device, Mechanism
from gpulet.executors.base import Emit, Outputs, Result, Signature, Tensor, Timer
from gpulet.plan import Plan
from gpulet.profile import Curve, Profile
from gpulet.units import Duration, Instant

EMULATED = Signature(
    inputs=(Tensor("input", "FP32", (-1, -1)),), outputs=(Tensor("output", "FP32", (-1, 1)),), platform="emulated"
)
"""What every emulated model takes and gives: any row of numbers, answered by a zero."""


class _Overlapping:
    """A run on a `whole` device: how much work is left, at which speed it goes."""

    __slots__ = ("left", "sms", "stamp")

    def __init__(self, left: float, sms: int) -> None:
        self.left = left
        self.sms = sms
        self.stamp = 0


class _Crowd:
    """The runs that overlap on one `whole` device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.runs: dict[BatchId, _Overlapping] = {}
        self.since: Instant = 0

    @property
    def slowdown(self) -> float:
        """How many times slower than alone each run goes now."""
        wanted = sum(run.sms for run in self.runs.values())
        crowding = 1 + self.device.contention * max(0, len(self.runs) - 1)
        return max(1.0, wanted / self.device.kind.sms) * crowding

    def progress(self, now: Instant) -> None:
        """Take off what each run has done since the crowd last changed."""
        done = (now - self.since) / self.slowdown
        for run in self.runs.values():
            run.left -= done
        self.since = now


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
        keeps_rows: bool = False,
    ) -> None:
        self._profile = profile
        self._timer = timer
        self._emit = emit
        self._load_time = load_time
        self._keeps_rows = keeps_rows
        self._rows: dict[BatchId, int] = {}
        self._gpulets = {g.id: (g.device, g.size.sms) for g in plan.gpulets}
        self._crowds = {d.index: _Crowd(d) for d in plan.devices if d.mechanism is Mechanism.WHOLE}
        self._curves: dict[tuple[str, int, str], Curve] = {}
        self._stamps: dict[int, tuple[_Crowd, BatchId, int]] = {}
        self._stamp = 0

    def carve(self) -> None:
        """Bring every gpulet up, at once."""
        for gpulet in self._gpulets:
            self._emit(GpuletUp(gpulet))

    def start(self, command: Start) -> None:
        """Finish the batch after its profiled time."""
        if self._keeps_rows:
            self._rows[command.batch] = command.rows
        on = command.on
        device, sms = (on.device, on.size) if isinstance(on, Carve) else self._gpulets[on]
        key = (command.model, sms, command.shape)
        curve = self._curves.get(key)
        if curve is None:
            curve = self._curves[key] = self._profile.curve(*key)
        latency = curve[command.rows - 1]
        if device in self._crowds:
            self._join(self._crowds[device], command.batch, latency, sms)
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

    def _finish(self, batch: BatchId) -> None:
        self._emit(Finished(batch))

    def _join(self, crowd: _Crowd, batch: BatchId, latency: Duration, sms: int) -> None:
        crowd.progress(self._timer.now())
        crowd.runs[batch] = _Overlapping(latency, sms)
        self._retime(crowd)

    def _retime(self, crowd: _Crowd) -> None:
        """Everybody's end has moved: earlier wake-ups are void by their stamp."""
        now, slowdown = self._timer.now(), crowd.slowdown
        for batch, run in crowd.runs.items():
            self._stamp += 1
            run.stamp = self._stamp
            self._stamps[self._stamp] = (crowd, batch, self._stamp)
            self._timer.at(now + max(0, round(run.left * slowdown)), self._leave, self._stamp)

    def _leave(self, stamp: int) -> None:
        crowd, batch, _ = self._stamps.pop(stamp)
        run = crowd.runs.get(batch)
        if run is None or run.stamp != stamp:
            return
        crowd.progress(self._timer.now())
        del crowd.runs[batch]
        self._retime(crowd)
        self._finish(batch)
