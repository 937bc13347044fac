"""Application requests in progress: which stage requests each of them makes next. It queues and starts nothing.

A stage request must be done by its application request's deadline less the shortest time that the stages behind it can
take: whoever drops early then drops nothing that could still be in time. Fan-outs that are no whole numbers are spread
evenly over the requests of a stage, without chance (docs/decisions/0006-applications.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from gpulet.application import Application, Stage, models_of
from gpulet.core.messages import (
    FIRST_STAGE_REQUEST,
    BatchId,
    Command,
    Drop,
    Fail,
    Gather,
    Reason,
    Reject,
    RequestId,
    Spawn,
)
from gpulet.model import Model
from gpulet.request import Request
from gpulet.units import Duration, Instant

Arrive: TypeAlias = Callable[[Request], None]
"""Takes a stage request in, now; what it is refused for becomes the last command."""
Refuse: TypeAlias = type[Reject] | type[Drop] | type[Fail]
_WHOLE: Final = 10**9
"""Fan-outs are counted in billionths, so that ten tenths make one."""


class _Stage:
    """One stage as it runs: `due` of them are owed, in billionths of a request."""

    __slots__ = ("after", "due", "fan_out", "is_leaf", "model", "name", "next", "rest")

    def __init__(self, stage: Stage, rest: Duration, *, is_leaf: bool) -> None:
        self.name = stage.name
        self.model = stage.model
        self.rest = rest
        self.is_leaf = is_leaf
        self.fan_out = round(stage.fan_out * _WHOLE)
        self.due = _WHOLE // 2
        self.after: tuple[_Stage, ...] = ()
        self.next: tuple[_Stage, ...] = ()  # those that wait for this one alone

    def owed(self) -> int:
        """How many requests one more finished parent makes."""
        count, self.due = divmod(self.due + self.fan_out, _WHOLE)
        return count


class _Route:
    """An application as it runs."""

    def __init__(self, application: Application, models: Mapping[str, Model]) -> None:
        self.most_rows = min(models[name].max_batch for name in models_of(application))
        rest = application.longest_after({s.name: s.least for s in application.stages})
        ordered, leaves = application.ordered(), application.leaves
        stages = {s.name: _Stage(s, rest[s.name], is_leaf=s in leaves) for s in ordered}
        for plain in ordered:
            stages[plain.name].after = tuple(stages[parent] for parent in plain.after)
        for stage in stages.values():
            stage.next = tuple(child for child in stages.values() if child.after == (stage,))
        self.stages = tuple(stages.values())
        self.first = tuple(stage for stage in self.stages if not stage.after)
        self.has_joins = not application.is_tree


class _Flow:
    """One application request in progress: `open` are its stage requests that wait or run."""

    __slots__ = ("batches", "is_over", "joined", "open", "request", "route")

    def __init__(self, request: Request, route: _Route) -> None:
        self.request = request
        self.route = route
        self.open: dict[RequestId, _Stage] = {}
        self.joined: set[_Stage] = set()
        self.batches: dict[BatchId, None] = {}
        self.is_over = False


class Flows:
    """All application requests in progress.

    `parts` are the stage requests that wait or run. What waits of an application request
    that has ended without an answer is `abandoned`: it is given up a little later, since a dispatcher's decision that is
    half carried out may be about to start it.
    """

    def __init__(self, applications: Iterable[Application], models: Mapping[str, Model]) -> None:
        self.parts: dict[RequestId, _Flow] = {}
        self.abandoned: list[RequestId] = []
        self.is_stopping = False
        self._routes = {application.name: _Route(application, models) for application in applications}
        self._flows: dict[RequestId, _Flow] = {}
        self._last: RequestId = FIRST_STAGE_REQUEST - 1

    @property
    def is_idle(self) -> bool:
        """No application request is in progress."""
        return not self._flows and not self.parts

    def begin(self, now: Instant, request: Request, arrive: Arrive, commands: list[Command]) -> None:
        """An arrived request that is for no model: refuse it, or make the requests of its application's first stages."""
        refusal = self._refusal(request)
        if refusal:
            return commands.append(Reject(request.id, refusal))
        flow = self._flows[request.id] = _Flow(request, self._routes[request.model])
        for stage in flow.route.first:
            self._spawn(now, flow, stage, Reject, arrive, commands)
        return self._settle(now, flow, Reject, arrive, commands)

    def go_on(
        self, now: Instant, finished: Sequence[Request], batch: BatchId, arrive: Arrive, commands: list[Command]
    ) -> None:
        """A batch is done: make what the stage requests in it lead to."""
        for request in finished:
            flow = self.parts.pop(request.id, None)
            if flow is None or flow.is_over:
                continue
            stage = flow.open.pop(request.id)
            if stage.is_leaf:
                flow.batches[batch] = None
            for child in stage.next:
                self._spawn(now, flow, child, Drop, arrive, commands)
            self._settle(now, flow, Drop, arrive, commands)

    def lose(self, request: RequestId, refuse: Refuse, reason: Reason, commands: list[Command]) -> None:
        """A request got no result; if it was a stage's, neither does its application request."""
        flow = self.parts.pop(request, None)
        if flow is not None and not flow.is_over:
            del flow.open[request]
            commands.append(refuse(flow.request.id, reason))
            self._end(flow)

    def cancel(self, request: RequestId, commands: list[Command]) -> None:
        """Its client went away: if it is an application request in progress it ends now, whatever of it runs."""
        flow = self._flows.get(request)
        if flow is not None:
            commands.append(Drop(request, Reason.CANCELLED))
            self._end(flow)

    def is_abandoned(self, request: RequestId) -> bool:
        """Whether this is a stage request whose application request has ended."""
        return request in self.parts and self.parts[request].is_over

    def _refusal(self, request: Request) -> Reason | None:
        route = self._routes.get(request.model)
        if route is None:
            return Reason.UNKNOWN_MODEL
        if request.rows > route.most_rows:
            return Reason.TOO_LARGE
        return Reason.STOPPED if self.is_stopping else None

    def _end(self, flow: _Flow) -> None:
        flow.is_over = True
        del self._flows[flow.request.id]
        self.abandoned += flow.open

    def _spawn(
        self, now: Instant, flow: _Flow, stage: _Stage, refuse: Refuse, arrive: Arrive, commands: list[Command]
    ) -> None:
        """Make this stage's next requests; when one of them is refused, so is the application's."""
        whole = flow.request
        deadline = whole.deadline - stage.rest
        for _ in range(stage.owed()):
            if flow.is_over:
                return
            self._last = number = self._last + 1
            flow.open[number] = stage
            self.parts[number] = flow
            request = Request(number, stage.model, now, deadline, whole.rows, whole.shape, whole.priority, whole.hard)
            commands.append(Spawn(request, whole.id, stage.name))
            arrive(request)
            last = commands[-1]
            if isinstance(last, Reject):
                self.lose(number, refuse, last.reason, commands)

    def _settle(self, now: Instant, flow: _Flow, refuse: Refuse, arrive: Arrive, commands: list[Command]) -> None:
        """Start joins whose parents are done; answer when nothing is open any more."""
        if flow.route.has_joins:
            done: set[_Stage] = set()
            for stage in flow.route.stages:
                if done.issuperset(stage.after):
                    if len(stage.after) > 1 and stage not in flow.joined:
                        flow.joined.add(stage)
                        self._spawn(now, flow, stage, refuse, arrive, commands)
                    if stage not in flow.open.values():
                        done.add(stage)
        if not flow.open and not flow.is_over:
            commands.append(Gather(flow.request.id, tuple(flow.batches)))
            self._end(flow)
