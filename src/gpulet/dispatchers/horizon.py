"""Ours, the rolling horizon: sizes chosen run by run, within shares that are guaranteed but not cut.

Nothing is planned ahead: at every arrival that completes a batch, at every finish and whenever a request can wait no
longer, the models that are ready are taken in the order in which they must start, and each runs what gives most rows
per SM-second of what is in time and fits (pacing.py). A model is ready when its pace's batch is there, or when its
oldest request has waited as long as its pace allows. Several runs of one model may go on side by side.

Guarantees. The plan says how many SMs of a device each model there may always hold. Beyond that it borrows, and leaves a part of what the others are not using; it leaves them all of it where
one of them waits and holds nothing. A model whose smallest worthwhile run is larger than its guarantee, and that holds
nothing, is saved up for, one at a time, the most urgent first: so none starves.

Bandwidth is the second dimension of the fit: runs whose measured DRAM use would exceed the device's peak together do
not start together.

Early drop. A request that could be in time only by a run that is not worth its SMs (half empty, or wide) is run so where
nobody is guaranteed the SMs, and is given up otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Carve, Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.pacing import Menu, Option, Pacing
from gpulet.plan import Plan
from gpulet.request import Request
from gpulet.units import NEVER, Instant

KEPT = 0.35
"""The part of an unused guarantee that others leave alone while its model does not wait."""
PEAK = 1.0
"""Of a device's bandwidth."""


class _Board:
    """One device: SMs guaranteed to and held by each model that is resident, and what is saved up for, by model."""

    __slots__ = ("dram", "guaranteed", "held", "index", "saving", "smallest")

    def __init__(self, index: int, guaranteed: Mapping[str, float], smallest: Mapping[str, int]) -> None:
        self.index = index
        self.guaranteed = guaranteed
        self.smallest = smallest
        self.held = dict.fromkeys(guaranteed, 0)
        self.dram = 0.0
        self.saving: dict[str, int] = {}

    def room(self, model: str, free: int) -> int:
        """SMs that a run of this model may take of those that are free."""
        first = next(iter(self.saving), model)
        saved = 0 if first == model else self.saving[first]
        own = free
        if saved or self.held[model]:
            own = max(self.smallest[model], round(self.guaranteed[model])) - self.held[model]
        owed = max(0.0, saved - self.guaranteed.get(first, 0.0)) if saved else 0.0
        for other, part in self.guaranteed.items():
            unused = part - self.held[other]
            if unused > 0 and other != model:
                owed += unused if other in self.saving else KEPT * unused
        return max(min(own, free - saved), int(free - owed))

    def spare(self, model: str, free: int) -> int:
        """SMs that no other model is guaranteed, and nobody saves up for."""
        owed = sum(max(0.0, part - self.held[name]) for name, part in self.guaranteed.items() if name != model)
        return int(free - max(owed, *self.saving.values(), 0))

    def bears(self, option: Option) -> bool:
        """Whether the bandwidth is enough beside what runs."""
        return self.dram + option.dram <= PEAK or not any(self.held.values())

    def start(self, model: str, option: Option) -> None:
        """A run of this model takes its SMs."""
        self.held[model] += option.size
        self.dram += option.dram
        self.saving.pop(model, None)

    def end(self, model: str, option: Option) -> None:
        """They are free again."""
        self.held[model] -= option.size
        self.dram -= option.dram


class Horizon:
    """One queue for each model and shape class; of several devices the one with most room runs a batch."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        devices = [device for device in plan.devices if any(r.device == device.index for r in plan.residents)]
        self._pacing = Pacing(problem, devices)
        self._boards = [self._board(plan, device) for device in devices]
        self._homes = {n: [board for board in self._boards if n in board.held] for n in problem.models}
        self._runs: dict[RequestId, tuple[_Board, str, Option]] = {}
        self._dues: dict[tuple[str, str], Instant] = {}

    def _board(self, plan: Plan, device: Device) -> _Board:
        guaranteed = {r.model: r.guaranteed for r in plan.residents if r.device == device.index}
        return _Board(device.index, guaranteed, {name: self._pacing.menu(name).smallest for name in guaranteed})

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no run holds is refused."""
        if request.rows > 1 and request.rows > self._pacing.menu(request.model, request.shape).largest:
            return Reason.TOO_LARGE
        return CENTRAL if self._homes[request.model] else Reason.LATE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch, or give up what is not worth running, and be asked again; or say when to be asked."""
        for requests in changed.ended:
            board, model, option = self._runs.pop(requests[0].id, _NOTHING)
            if board is not None:
                board.end(model, option)
        has_more_room = changed.ended or changed.devices or changed.alarm
        ready: list[tuple[Instant, Queue, Menu]] = []
        for queue in self._waiting(fleet) if has_more_room else changed.queues:
            self._dues.pop((queue.model, queue.shape), None)
            if queue:
                menu = self._pacing.menu(queue.model, queue.shape)
                stale = _stale(now, queue, menu)
                if stale:
                    return self._rescue(now, queue, menu, stale, fleet)
                self._look(now, queue, menu, ready)
        ready.sort(key=itemgetter(0))
        for _, queue, menu in ready:
            run = self._run(now, queue, menu, fleet)
            if run is not None:
                return Decision((run,), more=True)
        return Decision(wake_at=min(self._dues.values(), default=NEVER))

    def _waiting(self, fleet: Fleet) -> Iterator[Queue]:
        """Every queue that holds anything; nobody saves up for the others."""
        for name in self._homes:
            queues = [*fleet.central(name)]
            yield from queues
            if not queues:
                for board in self._homes[name]:
                    board.saving.pop(name, None)

    def _look(self, now: Instant, queue: Queue, menu: Menu, ready: list[tuple[Instant, Queue, Menu]]) -> None:
        """Whether the queue is ready, and by when it must start; else when it will be."""
        head, aim = queue.head, menu.pace
        latest = head.deadline - aim.option.latency
        due = min(head.arrival + aim.wait, latest)
        if queue.rows >= aim.option.rows or due <= now:
            ready.append((latest, queue, menu))
        else:
            self._dues[queue.model, queue.shape] = due

    def _run(self, now: Instant, queue: Queue, menu: Menu, fleet: Fleet) -> Run | None:
        """On the device with most room; where it is not enough, that device saves up for who holds nothing."""
        boards = self._homes[queue.model]
        rooms = [(board.room(queue.model, fleet.devices[board.index].free_sms), board) for board in boards]
        room, board = max(rooms, key=itemgetter(0)) if len(rooms) > 1 else rooms[0]
        option = _pick(now, queue, menu, room, board)
        if option is not None:
            return self._start(board, queue, option)
        if not board.held[queue.model]:
            wanted = _pick(now, queue, menu, fleet.devices[board.index].device.kind.sms, board)
            if wanted is not None:
                board.saving.setdefault(queue.model, wanted.size)
        return None

    def _rescue(self, now: Instant, queue: Queue, menu: Menu, stale: Sequence[Request], fleet: Fleet) -> Decision:
        """Run what is no longer worth its SMs where there are some to spare, and give it up otherwise."""
        head = queue.head
        for board in self._homes[queue.model]:
            spare = board.spare(queue.model, fleet.devices[board.index].free_sms)
            for option in menu.ways:
                is_in_time = option.rows >= head.rows and option.latency <= head.deadline - now
                if is_in_time and option.size <= spare and board.bears(option):
                    return Decision((self._start(board, queue, option),), more=True)
        return Decision(drop=stale, more=True)

    def _start(self, board: _Board, queue: Queue, option: Option) -> Run:
        requests = queue.take(option.rows)
        board.start(queue.model, option)
        self._runs[requests[0].id] = board, queue.model, option
        return Run(Carve(board.index, option.size), requests, option.latency)


_NOTHING: tuple[None, str, Option] = (None, "", Option(0, 0, 0))


def _stale(now: Instant, queue: Queue, menu: Menu) -> list[Request]:
    """The first requests that nothing worth running would serve in time."""
    rows = queue.rows
    stale: list[Request] = []
    for request in queue:
        if now + menu.level(rows).least <= request.deadline:
            break
        stale.append(request)
        rows = max(1, rows - request.rows)
    return stale


def _pick(now: Instant, queue: Queue, menu: Menu, room: int, board: _Board) -> Option | None:
    """The thriftiest that keeps to the pace's part of the objective, else to the objective; of rows that are there."""
    head, rows = queue.head, queue.rows
    hard = min(head.deadline - now, menu.slo)
    soft = min(head.arrival + menu.limit - now, hard)
    late: Option | None = None
    for option in menu.level(rows).options:
        if head.rows <= option.rows <= rows and option.size <= room and option.latency <= hard and board.bears(option):
            if option.latency <= soft:
                return option
            late = late or option
    if late is None and head.rows > 1:
        ways = (o for o in menu.ways if o.rows >= head.rows and o.size <= room and o.latency <= hard)
        late = next((option for option in ways if board.bears(option)), None)
    return late
