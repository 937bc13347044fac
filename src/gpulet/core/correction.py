"""Correcting an interference model online: a fold over messages that compares measured batch times with predicted ones.

While a batch runs, the work it should get done by the model is added up: time over predicted slowdown, anew whenever a
neighbour starts or ends. A batch that took more such work than its latency alone was slowed more than predicted. Only
batches that had a neighbour teach anything.
"""

from collections.abc import Sequence
from dataclasses import replace

from gpulet.core.messages import BatchId, Carve, Command, Event, Finished, GpuletDown, RunFailed, Start
from gpulet.interference import Footprint, Interference, footprint
from gpulet.plan import Plan
from gpulet.profile import Profile
from gpulet.units import Instant

WEIGHT = 0.05
"""Of the newest batch in the running mean: about 20 batches are remembered."""
BOUNDS = (0.5, 2.0)
"""A model that is wrong by more than a factor of two is to be fitted again, not corrected."""


class _Running:
    __slots__ = ("device", "done", "footprint", "had_neighbour", "slowdown", "started")

    def __init__(self, started: Instant, device: int, footprint: Footprint) -> None:
        self.started = started
        self.device = device
        self.footprint = footprint
        self.done = 0.0
        self.slowdown = 1.0
        self.had_neighbour = False


class Correction:
    """Measured over predicted slowdown by model; `corrected()` is the interference model with that built in."""

    def __init__(self, plan: Plan, profile: Profile, interference: Interference, *, weight: float = WEIGHT) -> None:
        self._profile = profile
        self._interference = interference
        self._weight = weight
        self._sms = {d.index: d.kind.sms for d in plan.devices}
        self._gpulets = {g.id: (g.device, g.size.sms, g.size.share_pct / 100, g.processes) for g in plan.gpulets}
        self._running: dict[BatchId, _Running] = {}
        self._on: dict[int, BatchId] = {}
        self._since: dict[int, Instant] = {}
        self.factors: dict[str, float] = {}

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """One step: what ended in it, then what started."""
        for event in events:
            match event:
                case Finished():
                    self._end(now, event.batch, is_whole=True)
                case RunFailed():
                    self._end(now, event.batch, is_whole=False)
                case GpuletDown() if event.gpulet in self._on:
                    self._end(now, self._on[event.gpulet], is_whole=False)
                case _:
                    pass
        for command in commands:
            if isinstance(command, Start):
                self._start(now, command)

    def corrected(self) -> Interference:
        """The same model, its predictions for each victim model times what was measured; earlier corrections stay in."""
        before = self._interference.corrections
        factors = {name: before.get(name, 1.0) * factor for name, factor in self.factors.items()}
        return replace(self._interference, corrections={**before, **factors}, _pairs={})

    def _start(self, now: Instant, start: Start) -> None:
        if isinstance(start.on, Carve):
            device, sms = start.on.device, start.on.size
            share, processes = sms / self._sms[device], 1
        else:
            device, sms, share, processes = self._gpulets[start.on]
            self._on[start.on] = start.batch
        self._progress(now, device)
        taken = footprint(self._profile, start.model, sms, share, start.rows, processes)
        self._running[start.batch] = _Running(now, device, taken)
        self._pace(device)

    def _end(self, now: Instant, batch: BatchId, *, is_whole: bool) -> None:
        run = self._running.get(batch)
        if run is None:
            return
        self._progress(now, run.device)
        del self._running[batch]
        self._on = {gpulet: other for gpulet, other in self._on.items() if other != batch}
        if is_whole and run.had_neighbour:
            self._learn(now, run)
        self._pace(run.device)

    def _learn(self, now: Instant, run: _Running) -> None:
        """Only the device's part was slowed: what is left of measured and of predicted time without the host's."""
        name, whole, on_device = run.footprint.side.model, run.footprint.latency, run.footprint.on_device
        host, took = whole - on_device, now - run.started
        predicted = whole * took / run.done - host if run.done else 0.0
        if predicted <= 0:
            return
        low, high = BOUNDS
        measured = min(max((took - host) / predicted, low), high)
        before = self.factors.get(name, 1.0)
        self.factors[name] = before + self._weight * (measured - before)

    def _progress(self, now: Instant, device: int) -> None:
        """Add what each run on the device should have done since something changed there."""
        passed = now - self._since.get(device, now)
        self._since[device] = now
        for run in self._running.values():
            if run.device == device:
                run.done += passed / run.slowdown

    def _pace(self, device: int) -> None:
        here = [run for run in self._running.values() if run.device == device]
        for run in here:
            others = [other.footprint.side for other in here if other is not run]
            factor = self._interference.slowdown(run.footprint.side, others)
            run.slowdown = run.footprint.slowed(factor) / run.footprint.latency
            run.had_neighbour = run.had_neighbour or bool(others)
