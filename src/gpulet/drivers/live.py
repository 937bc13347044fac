"""Real time: the core on an asyncio loop. It decides nothing.

Events of one turn of the loop make one step. Everything here runs on the loop's thread.
"""

import asyncio
from collections.abc import Callable, Sequence

from gpulet.core.journal import encode_step
from gpulet.core.messages import (
    Adopt,
    Answer,
    Arrived,
    Build,
    Cancelled,
    Command,
    Drop,
    Event,
    Explain,
    Fail,
    Gather,
    Load,
    Reason,
    Reject,
    Replan,
    RequestId,
    Retire,
    Spawn,
    Start,
    Stopping,
    Unload,
)
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Core
from gpulet.drivers.door import Door
from gpulet.drivers.gather import Client, Gathering
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.base import Changer, LiveExecutor, change
from gpulet.request import Request
from gpulet.units import NEVER, SECOND, Instant

Ask = Callable[[Replan], None]
"""Has a plan made, beside the loop; `Replanned` is fed when it is there."""
Write = Callable[[bytes], None]
"""Appends a line to the journal; must not block."""
Observe = Callable[[Instant, Sequence[Event], Sequence[Command]], None]


class Live:
    """Feeds one core and carries out its commands. `ask` is whoever has plans made, where the core asks for any."""

    ask: Ask

    def __init__(
        self,
        scheduler: Core,
        timer: LiveTimer,
        metrics: Metrics,
        journal: Write | None = None,
    ) -> None:
        self.timer = timer
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._scheduler = scheduler
        self._journal = journal
        self._observers: list[Observe] = []
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.door = Door(timer, self.feed)
        self._executor: LiveExecutor
        self._changer: Changer
        self._clients: dict[RequestId, Client] = {}
        self._pending: list[Event] = []
        self._last_request: RequestId = 0
        self._woken_at: Instant = NEVER

    def attach(self, executor: LiveExecutor, changer: Changer | None = None) -> None:
        """Say who carries out commands, and changes plans if the core does; they answer through `feed`."""
        self._executor = executor
        if changer:
            self._changer = changer

    def show(self, observe: Observe) -> None:
        """Say who sees every step from now on."""
        self._observers.append(observe)

    def client(self, request: RequestId) -> Client:
        """Who waits for a request that is not answered yet."""
        return self._clients[request]

    def submit(
        self, client: Client, model: str, deadline: Instant, *, shape: str, priority: int, hard: bool
    ) -> RequestId:
        """A request has arrived; `deadline` is an instant of `timer`. Its id can be cancelled."""
        self._last_request = number = self._last_request + 1
        application = self._scheduler.applications.get(model)
        self._clients[number] = Gathering(client, application) if application else client
        if self.failed.done():
            self._clients.pop(number).refuse(Reason.STOPPED)
            return number
        now = self.timer.now()
        request = Request(number, model, now, deadline, client.rows, shape, priority, hard)
        if model in self.door.asleep:
            self.door.keep(request)
        else:
            self.feed(Arrived(request))
        return number

    @property
    def asked(self) -> int:
        """How many requests there were so far."""
        return self._last_request

    def cancel(self, request: RequestId) -> None:
        """The client went away: what still waits is given up."""
        if request in self._clients:
            self.door.let_go(request)
            self.feed(Cancelled(request))

    def feed(self, event: Event) -> None:
        """Take part in this turn's step."""
        if self.failed.done():
            return
        if not self._pending:
            self._loop.call_soon(self._step)
        self._pending.append(event)

    async def drain(self, patience_s: float) -> bool:
        """Take no more arrivals and wait until nothing waits or runs; whether that came about in time."""
        self.feed(Stopping())
        give_up = self.timer.now() + round(patience_s * SECOND)
        while self._clients and self.timer.now() < give_up:  # noqa: ASYNC110 (once in a life)
            await asyncio.sleep(0.01)
        return not self._clients

    def holds(self, model: str) -> bool:
        """Whether anything waits or runs for it."""
        return self._scheduler.holds(model)

    def _step(self) -> None:
        events, self._pending = self._pending, []
        now = self.timer.now()
        commands: list[Command] = []
        try:
            commands = self._scheduler.step(now, *events)
            self._carry_out(now, events, commands)
        except Exception as error:  # noqa: BLE001 (a bug of ours or of somebody's dispatcher: nothing may hang)
            if self._journal and not commands:
                self._journal(encode_step(now, events, commands))
            self.abandon(error)

    def _carry_out(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        if self._journal:
            self._journal(encode_step(now, events, commands))
        self.metrics.record(now, events, commands)
        for observe in self._observers:
            observe(now, events, commands)
        for command in commands:
            self._execute(command)
        wake_at = self._scheduler.wake_at
        if wake_at != NEVER and not now < self._woken_at <= wake_at:
            self._woken_at = wake_at
            self.timer.at(wake_at, self._wake, wake_at)

    def abandon(self, error: Exception) -> None:
        """Give this server up: tell everybody who waits, and whoever runs it."""
        if self.failed.done():
            return
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.refuse(Reason.STOPPED)
        self.failed.set_exception(error)

    def _wake(self, due: Instant) -> None:
        """A wake-up that a later step has moved away is not an event; the core may be stepped all the same."""
        if not self._pending and not self.failed.done():
            self._step()

    def _execute(self, command: Command) -> None:
        match command:
            case Start():
                self._executor.start(command)
            case Answer():
                self._answer(command)
            case Reject() | Drop() | Fail():
                self._clients.pop(command.request).refuse(command.reason)
            case Spawn():
                self._clients[command.request.id] = self._gathering(command.application).part(command.stage)
            case Gather():
                self._gathering(command.request).conclude()
                del self._clients[command.request]
            case Load():
                self._executor.load(command)
            case Unload():
                self._executor.unload(command)
            case _:
                self._change(command)

    def _change(self, command: Replan | Build | Adopt | Retire | Explain) -> None:
        match command:
            case Replan():
                self.ask(command)
            case Explain():
                pass  # those who see every step tell
            case _:
                change(self._changer, command)

    def _gathering(self, application: RequestId) -> Gathering:
        client = self._clients[application]
        assert isinstance(client, Gathering), "only application requests have stages"
        return client

    def _answer(self, command: Answer) -> None:
        outputs = self._executor.outputs(command.batch)
        row = 0
        for request in command.requests:
            client = self._clients.pop(request)
            client.answer(outputs, row)
            row += client.rows
