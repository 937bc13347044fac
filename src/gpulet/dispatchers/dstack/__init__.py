"""The session plan and the opportunistic pass of D-STACK (Dhakal, Kulkarni and Ramakrishnan, IEEE TCC 2024).

Pass 1: each device repeats its timeline (planners/dstack.py); at a planned start the model runs what waits, up to the
planned batch. Pass 2: whatever is free then goes to models that wait and do not run there, the least served first: the
scoreboard counts what each took in the last ten sessions, of equals the tighter SLO goes first. Such a run may be smaller
than the knee where only that is free; it must be over before a planned run needs its SMs, before the model's own next
planned start, before its oldest request is due, and before the session ends.

What the paper leaves open is ours. The scoreboard counts area, SMs times predicted time, where the paper speaks of
runtime. A share below the knee is at least half of it. A planned run whose queue is empty is given up at once: what
comes later goes through pass 2. A planned run that finds its SMs or its model still busy goes before pass 2 until the
model's next one, with as many rows as fit without delaying another planned run. Plans fit to the nanosecond and clocks do
not: what starts late may end later by as much, a fiftieth of the session at most. Requests that a full batch would make late are
passed over by a planned run, rather than that it shrinks for their sake. A request that could not be in time even
if it started now at its knee is dropped. A model that the plan does not mention runs by pass 2 alone, at its point of
highest efficacy.
"""

from functools import partial
from itertools import chain, takewhile

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.dispatchers.dstack.board import Board
from gpulet.dispatchers.dstack.tenant import Tenant
from gpulet.efficacy import points_of, sizes_of, within
from gpulet.model import Model
from gpulet.plan import Plan, TimelineRun
from gpulet.request import Request
from gpulet.units import NEVER, Duration, Instant


class Dstack:
    """Serves a plan's timelines and fills what they leave free."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._boards = [_board(problem, plan, device) for device in plan.devices]
        self._runs: dict[RequestId, tuple[Board, str]] = {}
        self._least: dict[tuple[str, str, int], Duration] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no device holds in one batch is refused."""
        if request.rows > 1 and all(board.least(request) == NEVER for board in self._boards):
            return Reason.TOO_LARGE
        return CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Drop what is hopeless; else start what is due, and what fits beside it."""
        for requests in changed.ended:
            board, model = self._runs.pop(requests[0].id, (None, ""))
            if board is not None:
                board.end(now, model)
        if changed.alarm:
            for board in self._boards:
                board.foresaw(now, board.next_start)
        grown = None if changed.ended or changed.alarm or changed.devices else {q.model for q in changed.queues}
        queues = _waiting(fleet)
        hopeless = self._hopeless(now, queues if grown is None else {n: queues[n] for n in grown if n in queues})
        if hopeless:
            return Decision(drop=hopeless, more=True)
        starts: list[Run] = []
        for board in self._boards:
            for run in board.starts(now, fleet.devices[board.device].free_sms, grown, queues):
                first = run.requests[0]
                self._runs[first.id] = (board, first.model)
                queues[first.model].remove(fleet.waiting[first.id])
                starts.append(run)
        is_more = bool(starts) and len(self._boards) > 1
        is_waiting = len(fleet.waiting) > sum(len(run.requests) for run in starts)
        wake_at = min(board.next_start for board in self._boards) if is_waiting else NEVER
        return Decision(starts, wake_at=wake_at, more=is_more)

    def _hopeless(self, now: Instant, queues: dict[str, list[Queue]]) -> list[Request]:
        """Heads, and those right behind them, that are late even if they start now at their knee on any device."""
        late: list[Request] = []
        for queue in chain.from_iterable(queues.values()):
            if self._is_late(now, queue.head):
                late += takewhile(partial(self._is_late, now), queue)
        return late

    def _is_late(self, now: Instant, request: Request) -> bool:
        key = request.model, request.shape, request.rows
        least = self._least.get(key)
        if least is None:
            least = self._least[key] = min((b.least(request) for b in self._boards), default=NEVER)
        return now + least > request.deadline


def _waiting(fleet: Fleet) -> dict[str, list[Queue]]:
    """The queues that hold anything, by model."""
    waiting: dict[str, list[Queue]] = {}
    for name, shapes in fleet.queues.items():
        for queue in shapes.values():
            if queue.rows:
                waiting.setdefault(name, []).append(queue)
    return waiting


def _board(problem: Problem, plan: Plan, device: Device) -> Board:
    line = next((line for line in plan.timelines if line.device == device.index), None)
    runs = line.runs if line else ()
    here = {r.model for r in plan.residents if r.device == device.index} if plan.residents else problem.models.keys()
    models = [model for name, model in problem.models.items() if name in here]
    tenants = [_tenant(problem, device, model, [run for run in runs if run.model == model.name]) for model in models]
    period = line.period if line else max((model.slo for model in models), default=NEVER)
    return Board(device, runs, period, tenants)


def _tenant(problem: Problem, device: Device, model: Model, runs: list[TimelineRun]) -> Tenant:
    """As planned; else at its best point, or on the largest size where none keeps its objective."""
    offered = sizes_of(problem.profile, model.name, device)
    if runs:
        knee, batch = runs[0].size.sms, runs[0].batch
    else:
        best = next(within(points_of(problem.profile, model.name, offered), model), None)
        knee, batch = (best.size.sms, best.batch) if best else (offered[-1].sms, model.max_batch)
    sizes = sorted({knee, *(size.sms for size in offered if knee <= 2 * size.sms <= 2 * knee)}, reverse=True)
    return Tenant(model, tuple(sizes), batch, problem.profile)
