"""Ours, the rolling horizon: sizes chosen run by run, within shares that are guaranteed but not cut.

Nothing is planned ahead: at every arrival that completes a batch, at every finish and whenever a request can wait no
longer, the models that are ready are taken in the order in which they must start, and each runs what gives most rows
per SM-second of what is in time and fits (pacing.py). A model is ready when its pace's batch is there, or when its
oldest request has waited as long as its pace allows. Several runs of one model may go on side by side.

Guarantees. The plan says how many SMs of a device each model there may always hold. Beyond that it borrows, and leaves a
part of what the others are not using; it leaves them all of it where one of them waits and holds nothing. Such a model
is saved up for where its run is larger than its guarantee, one at a time, the most urgent first. So none starves whose
requests can wait for somebody's run to end: under a flood of runs longer than that, a model whose own run is wider than
its guarantee does.

Rates. Paces follow the rates that come, looked at once a second, so a model that is asked for more than planned batches
more; what is guaranteed is a rate, and takes fewer SMs at a thriftier pace. Where all of them together ask for more than
there is, whoever had less than its guarantee goes first, what is left goes to those who make most rows of it, and a run
takes the SMs that would otherwise stay idle.

Bandwidth is the second dimension of the fit: runs whose measured DRAM use would exceed the device's peak together do
not start together.

Early drop. A request that could be in time only by a run that is not worth its SMs (half empty, or wide) is run so where
nobody is guaranteed the SMs, and is given up otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TypeAlias

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Carve, Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.dispatchers.horizon.board import Board
from gpulet.dispatchers.horizon.rates import Rates
from gpulet.pacing import Menu, Option, Pacing
from gpulet.plan import Plan
from gpulet.request import Request
from gpulet.units import NEVER, Instant

_Ready: TypeAlias = tuple[tuple[bool, float], Queue, Menu]
"""What is ready, by its place in the order."""


class Horizon:
    """One queue for each model and shape class; of several devices the one with most room runs a batch."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        homes = {resident.device for resident in plan.residents}
        devices = [device for device in plan.devices if device.index in homes]
        self._pacing = Pacing(problem, devices or plan.devices)
        self._sms = sum(device.kind.sms for device in devices)
        self._planned = {name: self._pacing.menu(name).pace.option.thrift for name in problem.models}
        self._boards = [self._board(plan, device) for device in devices]
        self._homes = {n: [board for board in self._boards if n in board.held] for n in problem.models}
        self._rates = Rates({name: problem.demand.get(name, 0.0) for name in problem.models})
        self._runs: dict[RequestId, tuple[Board, str, Option]] = {}
        self._dues: dict[tuple[str, str], Instant] = {}

    def _board(self, plan: Plan, device: Device) -> Board:
        guaranteed = {r.model: r.guaranteed for r in plan.residents if r.device == device.index}
        board = Board(device.index, guaranteed, {name: self._pacing.menu(name).smallest for name in guaranteed})
        board.is_overloaded = self._pacing.area > self._sms
        return board

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no run holds is refused."""
        self._rates.came[request.model] += request.rows
        if request.rows > 1 and request.rows > self._pacing.menu(request.model, request.shape).largest:
            return Reason.TOO_LARGE
        return CENTRAL if self._homes[request.model] else Reason.LATE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch, or give up what is not worth running, and be asked again; or say when to be asked."""
        self._note(now, changed)
        has_more_room = self._gives_up_saving(fleet) or changed.ended or changed.devices or changed.alarm
        ready: list[_Ready] = []
        for queue in self._waiting(fleet) if has_more_room else changed.queues:
            self._dues.pop((queue.model, queue.shape), None)
            if queue:
                menu = self._pacing.menu(queue.model, queue.shape)
                stale = _stale(now, queue, menu)
                if stale:
                    return self._rescue(now, queue, menu, stale, fleet)
                self._look(now, queue, menu, ready)
        runs = (self._run(now, queue, menu, fleet) for _, queue, menu in sorted(ready, key=itemgetter(0)))
        run = next((run for run in runs if run is not None), None)
        if run is not None:
            return Decision((run,), more=True)
        return Decision(wake_at=min(self._dues.values(), default=NEVER))

    def _note(self, now: Instant, changed: Changed) -> None:
        """What ended, and whether other rates come than those that paces are made for."""
        for requests in changed.ended:
            board, model, option = self._runs.pop(requests[0].id, _NOTHING)
            if board is not None:
                board.end(model, option)
        if now >= self._rates.look_at:
            drifted = self._rates.drifted(now)
            if drifted:
                self._pace_anew(drifted)

    def _pace_anew(self, rates: Mapping[str, float]) -> None:
        """What is guaranteed is a rate: paces that are thriftier than the plan's need fewer SMs for it."""
        self._pacing = self._pacing.at(rates)
        for board in self._boards:
            board.is_overloaded = self._pacing.area > self._sms
            for name, planned in board.planned.items():
                thrift = self._planned[name] / self._pacing.menu(name).pace.option.thrift
                board.guaranteed[name] = planned * min(1.0, thrift)

    def _waiting(self, fleet: Fleet) -> Iterator[Queue]:
        """Every queue that holds anything."""
        for name in self._homes:
            yield from fleet.central(name)

    def _gives_up_saving(self, fleet: Fleet) -> bool:
        """Nobody saves up for a model that has nothing to run yet, or any more; whether anybody did."""
        idle = {n for board in self._boards for n in board.saving if not self._is_ready(n, fleet)}
        for board in self._boards if idle else ():
            board.saving = {name: sms for name, sms in board.saving.items() if name not in idle}
        return bool(idle)

    def _is_ready(self, name: str, fleet: Fleet) -> bool:
        return any((name, queue.shape) not in self._dues for queue in fleet.central(name))

    def _look(self, now: Instant, queue: Queue, menu: Menu, ready: list[_Ready]) -> None:
        """Whether the queue is ready, and by when it must start; else when it will be."""
        head, aim = queue.head, menu.pace
        latest = head.deadline - aim.option.latency
        due = min(head.arrival + aim.wait, latest)
        if queue.rows >= aim.option.rows or due <= now:
            ready.append((self._order(now, queue.model, latest, aim.option), queue, menu))
        else:
            self._dues[queue.model, queue.shape] = due

    def _order(self, now: Instant, model: str, latest: Instant, option: Option) -> tuple[bool, float]:
        """Who is owed SMs goes first, by latest start; then whose rows take the least of them."""
        is_owed = any(board.is_owed(model, now) for board in self._homes[model])
        return not is_owed, latest if is_owed else -option.thrift

    def _run(self, now: Instant, queue: Queue, menu: Menu, fleet: Fleet) -> Run | None:
        """On the device with most room that bears it; where none does, one saves up for who is owed and holds nothing."""
        rooms = [(b.room(now, queue.model, fleet.devices[b.index].free_sms), b) for b in self._homes[queue.model]]
        for room, board in sorted(rooms, key=_most_room) if len(rooms) > 1 else rooms:
            option = _pick(now, queue, menu, room, board)
            if option is not None:
                return self._start(now, board, queue, self._widened(option, menu, board, fleet))
        board = max(rooms, key=itemgetter(0))[1] if len(rooms) > 1 else rooms[0][1]
        if not board.held[queue.model] and board.is_owed(queue.model, now):
            wanted = _pick(now, queue, menu, fleet.devices[board.index].device.kind.sms, board)
            if wanted is not None:
                board.saving.setdefault(queue.model, wanted.size)
        return None

    def _widened(self, option: Option, menu: Menu, board: Board, fleet: Fleet) -> Option:
        """As wide as it can be, where more is asked for than there is and nobody who waits fits into what would stay idle."""
        free = fleet.devices[board.index].free_sms
        if not board.is_overloaded or board.saving:
            return option
        waiting = [queue for name in board.held for queue in fleet.central(name)]
        if any(self._pacing.menu(q.model, q.shape).pace.option.size <= free - option.size for q in waiting):
            return option
        wider = (o for o in menu.ways if o.rows == option.rows and option.size < o.size <= free and board.bears(o))
        return min(wider, key=lambda o: o.latency, default=option)

    def _rescue(self, now: Instant, queue: Queue, menu: Menu, stale: Sequence[Request], fleet: Fleet) -> Decision:
        """Run what is no longer worth its SMs where there are some to spare, and give it up otherwise."""
        head, rows = queue.head, queue.rows
        for board in self._homes[queue.model]:
            spare = board.spare(queue.model, fleet.devices[board.index].free_sms)
            for option in menu.every if head.rows > 1 else menu.ways:
                is_in_time = head.rows <= option.rows <= rows and option.latency <= head.deadline - now
                if is_in_time and option.size <= spare and board.bears(option):
                    return Decision((self._start(now, board, queue, option),), more=True)
        return Decision(drop=stale, more=True)

    def _start(self, now: Instant, board: Board, queue: Queue, option: Option) -> Run:
        requests = queue.take(option.rows)
        board.start(now, queue.model, option)
        for home in self._homes[queue.model]:
            home.saving.pop(queue.model, None)
        self._runs[requests[0].id] = board, queue.model, option
        return Run(Carve(board.index, option.size), requests, option.latency)


_NOTHING: tuple[None, str, Option] = (None, "", Option(0, 0, 0))


def _stale(now: Instant, queue: Queue, menu: Menu) -> list[Request]:
    """The first requests that nothing worth running would serve in time."""
    rows = queue.rows
    stale: list[Request] = []
    for request in queue:
        if now + menu.level(rows, request.rows).least <= request.deadline:
            break
        stale.append(request)
        rows = max(1, rows - request.rows)
    return stale


def _pick(now: Instant, queue: Queue, menu: Menu, room: int, board: Board) -> Option | None:
    """The thriftiest that keeps to the pace's part of the objective, else to the objective; of rows that are there."""
    head, rows = queue.head, queue.rows
    level = menu.level(rows, head.rows)
    hard = min(head.deadline - now, max(menu.slo, level.least))
    soft = min(head.arrival + menu.limit - now, hard)
    late: Option | None = None
    for option in level.options:
        if head.rows <= option.rows <= rows and option.size <= room and option.latency <= hard and board.bears(option):
            if option.latency <= soft:
                return option
            late = late or option
    return late


def _most_room(found: tuple[int, Board]) -> int:
    return -found[0]
