"""The door: where requests for models that sleep wait until they are loaded, few and not for long.

Each of them goes to the core in the end, which answers it: served once its model is opened there, refused while it is closed.
"""

from collections.abc import Callable

from msgspec.structs import replace

from gpulet.core.messages import Arrived, Closed, Event, Opened, RequestId
from gpulet.drivers.timers import LiveTimer
from gpulet.request import Request
from gpulet.units import SECOND, Duration


class Door:
    """Before the core. `asleep` are the models whose requests wait here; `wake` is told of each that does."""

    def __init__(self, timer: LiveTimer, feed: Callable[[Event], None]) -> None:
        self.asleep: set[str] = set()
        self.wake: Callable[[str], None] = lambda _: None
        self.patience: Duration = 30 * SECOND
        self.most = 4096
        self._timer = timer
        self._feed = feed
        self._kept: dict[RequestId, Request] = {}

    def open(self, model: str) -> None:
        """It is loaded. Who waited has the time from here on that it had at its arrival, unless the client gave it."""
        self._feed(Opened(model))
        self.asleep.discard(model)
        now = self._timer.now()
        for request in self._take(model):
            due = request.deadline if request.hard else now + request.deadline - request.arrival
            self._feed(Arrived(replace(request, deadline=due)))

    def close(self, model: str, *, sleeps: bool) -> None:
        """It is not loaded, or about to leave: requests are refused, or kept if it `sleeps`."""
        self._feed(Closed(model))
        if sleeps:
            self.asleep.add(model)
        else:
            self.asleep.discard(model)
            self.refuse(model)

    def refuse(self, model: str) -> None:
        """Nobody waits for it any longer."""
        for request in self._take(model):
            self._feed(Arrived(request))

    def keep(self, request: Request) -> None:
        """Until its model is loaded, its own deadline or our patience; the core refuses what is too many."""
        if len(self._kept) >= self.most:
            self._feed(Arrived(request))
            return
        self._kept[request.id] = request
        self._timer.at(request.deadline if request.hard else request.arrival + self.patience, self.let_go, request.id)
        self.wake(request.model)

    def let_go(self, number: RequestId) -> None:
        """It waits no longer, if it did."""
        request = self._kept.pop(number, None)
        if request:
            self._feed(Arrived(request))

    def shut(self) -> None:
        """The server stops: nobody waits any longer, nobody sleeps."""
        self.asleep.clear()
        for number in tuple(self._kept):
            self.let_go(number)

    def has(self, model: str) -> bool:
        """Whether somebody waits for it."""
        return any(request.model == model for request in self._kept.values())

    def _take(self, model: str) -> list[Request]:
        mine = [request for request in self._kept.values() if request.model == model]
        for request in mine:
            del self._kept[request.id]
        return mine
