"""What tests share: small fleets, a watcher that proves the core's rules, and one dispatcher of each shape."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

from gpulet.core.fleet import CENTRAL
from gpulet.core.messages import (
    FIRST_STAGE_REQUEST,
    Adopt,
    Answer,
    Arrived,
    Cancelled,
    Carve,
    Drop,
    Fail,
    Finished,
    Gather,
    GpuletDown,
    GpuletUp,
    Load,
    Reason,
    Reject,
    Retire,
    RunFailed,
    Spawn,
    Start,
    Unload,
)
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Decision, Problem, Run
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.device import Device, Kind, Mechanism, Size, overcut
from gpulet.dispatchers.clipper import Clipper, regression
from gpulet.dispatchers.dstack import Dstack
from gpulet.dispatchers.dutycycle import DutyCycle
from gpulet.dispatchers.elsa import Elsa, Rule, Within
from gpulet.dispatchers.fifs import Fifs, Idle
from gpulet.dispatchers.horizon import Horizon
from gpulet.dispatchers.triton import DynamicBatching, RateLimiter, Resource, TimeoutAction, Triton
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.executors.simulated import Simulated
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Resident, Turn, placements
from gpulet.planners.dstack import dstack
from gpulet.planners.horizon import horizon
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.systems import SYSTEMS
from gpulet.units import MS, NEVER

SMS = 8
TINY = Kind("tiny", SMS, 100)


def tiny_profile(models, base=2 * MS, per_row=MS, sizes=(1, 2, 4, 8), largest=8):
    """Latency base + per_row x rows, doubled whenever the size halves; two processes take half as long again."""
    return Profile(
        tuple(
            Point(name, size, rows, *[(base + per_row * rows) * (SMS // size) * (1 + n) // 2] * 3, processes=n)
            for name in models
            for size in sizes
            for rows in (1, largest)
            for n in (1, 2)
        )
    )


def tiny_plan(layout, models, mechanism=Mechanism.GREEN):
    """`layout[d]` lists the (size, models) or (size, models, processes) of the gpulets on device d, side by side."""
    profile = tiny_profile(models)
    devices = tuple(Device(d, TINY, mechanism) for d in range(len(layout)))
    gpulets = []
    for d, cut in enumerate(layout):
        offset = 0
        for size, names, *several in cut:
            n = several[0] if several else 1
            turns = tuple(Turn(name, 4, 10.0, profile.latency(name, size, 4, processes=n)) for name in names)
            duty = sum(t.latency for t in turns)
            gpulets.append(Gpulet(len(gpulets), d, Size(size, 100 * size / SMS), offset, duty, turns, n))
            offset += 0 if mechanism is Mechanism.WHOLE else size
    return Plan(devices, tuple(gpulets)).unfolded()


def problem_of(models, plan, profile=None):
    return Problem(
        {m.name: m for m in models},
        {m.name: 10.0 for m in models},
        plan.devices,
        profile or tiny_profile([m.name for m in models]),
    )


@dataclass
class Watch:
    """Observes every step and proves what must hold whatever a dispatcher decides."""

    plan: Plan
    limits: Limits
    arrived: dict = field(default_factory=dict)
    ended: Counter = field(default_factory=Counter)
    running: dict = field(default_factory=dict)
    waiting: set = field(default_factory=set)
    retried: set = field(default_factory=set)
    applications: frozenset = frozenset()
    parts: dict = field(default_factory=dict)
    open: dict = field(default_factory=dict)
    broken: set = field(default_factory=set)
    gpulets: dict = field(default_factory=dict)
    refused: int = 0

    def __post_init__(self):
        self.gpulets = {g.id: g for g in self.plan.gpulets}

    def observe(self, now, events, commands):
        for event in events:
            self._event(event)
        for command in commands:
            self._command(now, command)
        assert self.broken <= set(self.ended), "an application request outlived one of its stage requests"
        idle = [part for part in self.waiting if self.parts.get(part) in self.ended]
        assert not idle, "a stage request still waits whose application request has ended"
        for name in {r.model for r in self.arrived.values()}:
            # What a dead worker ran comes back on top of what waits.
            depth = sum(self.arrived[i].model == name for i in self.waiting - self.retried)
            assert depth <= self.limits.max_queue, f"{depth} wait for {name}"

    def _event(self, event):
        match event:
            case Arrived(request):
                assert request.id not in self.arrived
                self.arrived[request.id] = request
                if request.model in self.applications:
                    self.open[request.id] = set()
                else:
                    self.waiting.add(request.id)
            case Finished(batch):
                assert batch in self.running, "a batch ended that did not run"
            case RunFailed(batch):
                del self.running[batch]
            case GpuletDown(gpulet):
                lost = [b for b, s in self.running.items() if s.on == gpulet]
                for batch in lost:
                    requests = set(self.running.pop(batch).requests)
                    self.waiting |= requests
                    self.retried |= requests
            case _:
                pass

    def _command(self, now, command):
        self._change(command)
        match command:
            case Start():
                self._start(now, command)
            case Answer():
                start = self.running.pop(command.batch)
                assert start.requests == command.requests
                self.ended.update(command.requests)
                for part in command.requests:
                    self.open.get(self.parts.get(part), set()).discard(part)
            case Reject() | Drop() | Fail():
                self.waiting.discard(command.request)
                self.ended[command.request] += 1
                if command.request in self.parts:
                    self.broken.add(self.parts[command.request])
            case Spawn():
                self._spawn(command.request, command.application)
            case Gather():
                assert not self.open[command.request], "answered before its stages were done"
                assert command.request not in self.broken, "answered without one of its stages"
                self.ended[command.request] += 1
            case _:
                pass

    def _change(self, command):
        match command:
            case Adopt(plan=plan):
                assert not plan.violations()
                staying = {g.id: (g.device, g.size, g.offset) for g in plan.gpulets if g.id in self.gpulets}
                there = {i: (g.device, g.size, g.offset) for i, g in self.gpulets.items()}
                assert staying.items() <= there.items(), "a gpulet was moved under its number"
                self.gpulets |= {g.id: g for g in plan.gpulets}
            case Retire(gpulet=gpulet):
                assert all(s.on != gpulet for s in self.running.values()), "retired while it ran"
                del self.gpulets[gpulet]
            case _:
                pass

    def _spawn(self, request, application):
        assert request.id >= FIRST_STAGE_REQUEST
        assert request.id not in self.arrived
        assert application not in self.ended, "a stage request of an application request that has ended"
        self.arrived[request.id] = request
        self.waiting.add(request.id)
        self.parts[request.id] = application
        self.open[application].add(request.id)

    def _start(self, now, start):
        requests = [self.arrived[i] for i in start.requests]
        assert requests, "an empty batch"
        assert {(r.model, r.shape) for r in requests} == {(start.model, start.shape)}, "unequal requests were joined"
        assert start.rows == sum(r.rows for r in requests)
        for request in requests:
            assert request.id in self.waiting, "started while it did not wait"
            assert not self.limits.early_drop or now < request.deadline, "started at or after its deadline"
            self.waiting.remove(request.id)
        if not isinstance(start.on, Carve):
            assert all(s.on != start.on for s in self.running.values()), "two batches on one gpulet"
        self.running[start.batch] = start
        self._not_overcut()

    def _not_overcut(self):
        """At this instant, on partitioned devices: gpulets in use and carved SMs side by side."""
        for device in self.plan.devices:
            on = [s.on for s in self.running.values()]
            carved = sum(c.size for c in on if isinstance(c, Carve) and c.device == device.index)
            used = [self.gpulets[g] for g in on if not isinstance(g, Carve)]
            mine = placements([g for g in used if g.device == device.index])
            assert not overcut(device, mine)
            if device.mechanism is not Mechanism.WHOLE:
                assert carved + sum(p.size.sms for p in mine) <= device.kind.sms, "over-cut"

    def finish(self):
        """Once everything has come to rest."""
        assert set(self.ended) == set(self.arrived), "a request was never answered"
        assert all(count == 1 for count in self.ended.values()), "a request was answered twice"
        assert not self.running
        assert not self.waiting


class World:
    """A scheduler under virtual time, watched."""

    def __init__(self, models, plan, make_dispatcher, limits=None, profile=None, applications=(), look=None):
        limits = limits or Limits()
        problem = problem_of(models, plan, profile)
        self.plan = plan
        self.scheduler = Scheduler(problem.models, plan, make_dispatcher(problem, plan), limits, applications)
        self.timer = VirtualTimer()
        names = [a.name for a in applications]
        self.metrics = Metrics([*(m.name for m in models), *names], plan)
        self.watch = Watch(plan, limits, applications=frozenset(names))
        self.steps = []
        observers = [self.watch.observe, lambda *step: self.steps.append(step)]
        observers += [lambda now, *_: look(self, now)] if look else []
        self.simulation = Simulation(self.scheduler, self.timer, self.metrics, observers)
        self.executor = MortalExecutor(problem.profile, plan, self.timer, self.simulation.feed)
        self.simulation.attach(self.executor)
        self.executor.carve()

    def run(self, requests):
        self.simulation.run(requests)
        self.watch.finish()
        return self.metrics

    def at(self, when, act):
        self.timer.at(when, lambda _: act(), 0)

    def kill(self, when, gpulet, back_after):
        self.at(when, lambda: self.executor.kill(gpulet))
        self.at(when + back_after, lambda: self.executor.revive(gpulet))

    def cancel(self, when, request):
        self.at(when, lambda: self.simulation.feed(Cancelled(request)))


class MortalExecutor(Simulated):
    """The simulated executor, on which gpulets can die, models can fail a batch, and batches can overrun."""

    def __init__(self, *args):
        super().__init__(*args)
        self.on = {}
        self.dead = set()
        self.poisoned = set()
        self.overruns = {}

    def start(self, command):
        self.on[command.batch] = command.on
        overrun = self.overruns.get(command.batch)
        self._noise = (lambda latency: latency + overrun) if overrun else None
        super().start(command)

    def _finish(self, batch):
        on = self.on.pop(batch, "lost")
        if on != "lost":
            self._emit(RunFailed(batch) if batch in self.poisoned else Finished(batch))

    def kill(self, gpulet):
        if gpulet not in self.dead:
            self.dead.add(gpulet)
            self.on = {b: on for b, on in self.on.items() if on != gpulet}
            self._emit(GpuletDown(gpulet))

    def revive(self, gpulet):
        if gpulet in self.dead:
            self.dead.discard(gpulet)
            self._emit(GpuletUp(gpulet))


# one dispatcher of each shape of DESIGN section 4 ---------------------------------------------------------------------


class IdlePicks:
    """Shape 1: an idle gpulet picks a batch from its models' queues."""

    def __init__(self, problem, plan):
        self.problem = problem

    def bind(self, now, request, fleet):
        return CENTRAL

    def decide(self, now, changed, fleet):
        for gpulet in fleet.gpulets.values():
            for name in gpulet.planned.models if gpulet.is_idle else ():
                for queue in fleet.central(name):
                    return Decision([Run(gpulet.id, queue.take(max(4, queue.head.rows)))], more=True)
        return Decision()


class BoundOnArrival:
    """Shape 2: a request is bound to one gpulet on arrival (the one with the fewest rows waiting)."""

    def __init__(self, problem, plan):
        self.hosts = {name: [g.id for g in plan.hosts(name)] for name in problem.models}

    def bind(self, now, request, fleet):
        hosts = self.hosts[request.model]
        return min(hosts, key=lambda g: (fleet.gpulets[g].queue.rows, g), default=Reason.NOT_LOADED)

    def decide(self, now, changed, fleet):
        for gpulet in fleet.gpulets.values():
            if gpulet.is_idle and gpulet.queue:
                return Decision([Run(gpulet.id, [gpulet.queue.head])], more=True)
        return Decision()


class OneCentralQueue:
    """Shape 3: all queues together, the earliest deadline first, one batch on a whole device at a time."""

    def __init__(self, problem, plan):
        pass

    def bind(self, now, request, fleet):
        return CENTRAL

    def decide(self, now, changed, fleet):
        free = [d for d in fleet.devices.values() if d.free_sms == d.device.kind.sms]
        queues = [queue for name in fleet.models for queue in fleet.central(name)]
        if not free or not queues:
            return Decision()
        queue = min(queues, key=lambda q: min(r.deadline for r in q))
        first = min(queue, key=lambda r: r.deadline)
        return Decision([Run(Carve(free[0].device.index, SMS), [first])], more=True)


class SizePerRun:
    """Shape 4: any free SMs of a device; the size grows with what waits. Waits a little to build batches."""

    def __init__(self, problem, plan):
        pass

    def bind(self, now, request, fleet):
        return CENTRAL

    def decide(self, now, changed, fleet):
        wake = NEVER
        for name in fleet.models:
            for queue in fleet.central(name):
                due = queue.head.arrival + MS
                size = 4 if queue.rows > 2 else 2
                device = next((d for d in fleet.devices.values() if d.free_sms >= size), None)
                if device and (now >= due or queue.rows > 3):
                    requests = queue.take(max(4, queue.head.rows))
                    return Decision([Run(Carve(device.device.index, size), requests)], more=True)
                wake = min(wake, due) if now < due else wake
        return Decision(wake_at=wake)


class LoadsAndEvicts:
    """Shape 5: a model runs only where it is resident; the dispatcher loads what is asked for and evicts what is not."""

    def __init__(self, problem, plan):
        pass

    def bind(self, now, request, fleet):
        return CENTRAL

    def decide(self, now, changed, fleet):
        wanted = [queue for name in fleet.models for queue in fleet.central(name)]
        for queue in wanted:
            for state in fleet.devices.values():
                if queue.model in state.resident and state.free_sms >= SMS:
                    return Decision(
                        [Run(Carve(state.device.index, SMS), queue.take(max(4, queue.head.rows)))], more=True
                    )
        for queue in wanted:
            decision = self._make_room(queue.model, fleet)
            if decision:
                return decision
        return Decision()

    def _make_room(self, model, fleet):
        if any(model in s.resident | s.loading for s in fleet.devices.values()):
            return None
        need = fleet.models[model].memory
        for state in fleet.devices.values():
            if state.memory_used + need <= state.device.kind.memory:
                return Decision(load=[Load(model, state.device.index)], more=True)
            if state.free_sms == SMS and state.resident and not state.loading:
                victim = min(state.resident)
                return Decision(unload=[Unload(victim, state.device.index)])
        return None


SHAPES = {
    "idle picks": IdlePicks,
    "bound on arrival": BoundOnArrival,
    "one central queue": OneCentralQueue,
    "size per run": SizePerRun,
    "loads and evicts": LoadsAndEvicts,
}
CARVES = {
    "one central queue",
    "size per run",
    "loads and evicts",
    "clockwork",
    "dstack",
    "dstack, in sessions",
    "rolling horizon",
}


def segments(problem, plan):
    """Up to one row on size 1, up to two rows on size 2, and so on."""
    return {(name, size): size for name in problem.models for size in (1, 2, 4, 8)}


TOKEN = Resource("token", 1, is_global=True)
LATER = DynamicBatching((2, 4), 3000, timeout_action=TimeoutAction.DELAY, default_timeout_microseconds=4000)
NEVER_LATER = DynamicBatching((), 1000, max_batch_size=2, default_timeout_microseconds=4000, max_queue_size=3)


def in_sessions(problem, plan):
    """Every model has its runs in every session, as far as they fit, on sizes of any number of SMs."""
    devices = tuple(replace(device, mechanism=Mechanism.CPU) for device in plan.devices)
    models = {name: replace(model, memory=0) for name, model in problem.models.items()}
    planned = dstack(replace(problem, devices=devices, models=models))
    timelines = (planned if isinstance(planned, Plan) else planned.partial).timelines
    return Dstack(problem, replace(plan, devices=devices, timelines=timelines))


def as_they_come(problem, plan):
    """Every model on every device, on sizes of any number of SMs."""
    devices = tuple(replace(device, mechanism=Mechanism.MPS, resizes=True) for device in plan.devices)
    models = {name: replace(model, memory=0) for name, model in problem.models.items()}
    planned = horizon(replace(problem, devices=devices, models=models))
    plan = planned if isinstance(planned, Plan) else planned.partial
    return Horizon(problem, plan)


def patient(problem, plan):
    """Every model's requests may wait 3 ms for a fuller batch."""
    models = {name: replace(model, max_queue_delay=3 * MS) for name, model in problem.models.items()}
    return DutyCycle(replace(problem, models=models), plan)


OPTIONS = {
    "duty cycle, patient": patient,
    "dstack, in sessions": in_sessions,
    "rolling horizon": as_they_come,
    "elsa": Elsa,
    "elsa, first fit, learning": partial(Elsa, alpha=1.1, within=Within.FIRST_FIT, learns=0.2),
    "least work": partial(Elsa, rule=Rule.LEAST_WORK),
    "fifs": Fifs,
    "fifs, largest": partial(Fifs, idle=Idle.LARGEST),
    "fifs, random": partial(Fifs, idle=Idle.RANDOM, seed=1),
    "clipper, waiting": partial(Clipper, wait=2 * MS),
    "clipper, exploring": partial(Clipper, sizing=partial(regression, is_warm=False)),
    "triton, delayed": partial(Triton, batching=LATER),
    "triton, rejecting": partial(Triton, batching=NEVER_LATER),
    "triton, limited": partial(Triton, limiters={"m0": RateLimiter((TOKEN,), 2), "m1": RateLimiter((TOKEN,))}),
    "segments": partial(Fifs, idle=Idle.SMALLEST, segments=segments),
}
"""Dispatchers with options that no system has by default."""
_SYSTEMS = {name: system.dispatcher for name, system in reversed(SYSTEMS.items())}
_REGISTERED = {repr(make): (name, make) for name, make in [*OPTIONS.items(), *_SYSTEMS.items()]}
DISPATCHERS = {**SHAPES, **dict(_REGISTERED.values())}
"""One of each shape, and every registered dispatcher once, under the name of the first system that has it."""


def models_of(count, slo=40 * MS, memory=40):
    return [Model(f"m{i}", slo, max_batch=8, memory=memory) for i in range(count)]


def requests_of(arrivals, models):
    """(time, model index, rows, shape, priority, is hard) in any order to requests in order."""
    ordered = sorted(arrivals, key=lambda a: a[0])
    return [
        Request(n, models[m].name, t, t + models[m].slo, rows, shape, priority, hard)
        for n, (t, m, rows, shape, priority, hard) in enumerate(ordered, start=1)
    ]


def resident_plan(plan, model, memory):
    return Plan(plan.devices, residents=(Resident(0, model, memory),))
