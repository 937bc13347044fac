"""Microseconds of CPU that ELSA takes for a request: its `bind` and its `decide`s, and nothing of the core.

A run is recorded in which batches take 10 % more or less than profiled. Its events are fed to a fresh core, timed, with
ELSA and with a dispatcher that only repeats what ELSA decided; the difference is ELSA. Sizes are those of an A100's MIG
types; rows are log-normal; gpulets are busy some 70 % of the time, with all sizes in use.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import median
from time import process_time_ns

from common import record

from gpulet.core.fleet import Fleet
from gpulet.core.messages import Answer, Arrived, Event, Finished, GpuletUp, Start
from gpulet.core.ports import Changed, Decision, Dispatcher, Place, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.dispatchers.elsa import Elsa
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.units import MS, Instant

REQUESTS = 20_000
REPEATS = 7
KIND = find_kind("a100-40gb")
SIZES = (14, 28, 42, 56, 98)
MOST_ROWS = 32
BUSY = 0.7
NOISE = 0.1
Step = tuple[Instant, tuple[Event, ...]]


def latency(size: int, rows: int) -> int:
    """1 ms, and 0.2 ms a row on all of the GPU."""
    return MS + rows * MS // 5 * SIZES[-1] // size


def make_fleet(gpulets: int, sizes: Sequence[int]) -> tuple[Problem, Plan]:
    """As many gpulets of each size, each on a device of its own; due after 1.5 times the longest run of the largest."""
    slo = 3 * latency(SIZES[-1], MOST_ROWS) // 2
    points = (Point("model", size, rows, *[latency(size, rows)] * 3) for size in SIZES for rows in (1, MOST_ROWS))
    devices = tuple(Device(d, KIND, Mechanism.MPS) for d in range(gpulets))
    placed = []
    for place in range(gpulets):
        size = sizes[place * len(sizes) // gpulets]
        turn = Turn("model", MOST_ROWS, 1.0, latency(size, MOST_ROWS))
        placed.append(Gpulet(place, place, Size(size, 100 * size / KIND.sms), 0, turn.latency, (turn,)))
    model = Model("model", slo, MOST_ROWS)
    return Problem({"model": model}, {"model": 1.0}, devices, Profile(tuple(points))), Plan(devices, tuple(placed))


def arrivals(problem: Problem, plan: Plan, random: Random) -> list[Request]:
    """Poisson, at the rate that keeps the gpulets busy if each gets its share."""
    rows = [min(MOST_ROWS, max(1, round(random.lognormvariate(1.386, 0.9)))) for _ in range(REQUESTS)]
    mean = sum(rows) / len(rows)
    rate = BUSY * sum(1 / latency(g.size.sms, round(mean)) for g in plan.gpulets)
    now, requests = 0.0, []
    for number, few in enumerate(rows, start=1):
        now += random.expovariate(rate)
        requests.append(Request(number, "model", round(now), round(now) + problem.models["model"].slo, few))
    return requests


class Recorder:
    """Asks another dispatcher and remembers what it said."""

    def __init__(self, asked: Dispatcher) -> None:
        self.asked = asked
        self.places: list[Place] = []
        self.decisions: list[Decision] = []

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        self.places.append(self.asked.bind(now, request, fleet))
        return self.places[-1]

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        self.decisions.append(self.asked.decide(now, changed, fleet))
        return self.decisions[-1]


class Repeater:
    """Says what was said before."""

    def __init__(self, said: Recorder) -> None:
        self._place = iter(said.places).__next__
        self._decision = iter(said.decisions).__next__

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        return self._place()

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        return self._decision()


def run(problem: Problem, plan: Plan) -> tuple[list[Step], Recorder, dict[str, float]]:
    """Every step of a run, what was decided in it, and what came of it."""
    random, serial = Random(1), count()
    recorder = Recorder(Elsa(problem, plan))
    scheduler = Scheduler(problem.models, plan, recorder, Limits(REQUESTS, early_drop=False))
    due: list[tuple[Instant, int, Event]] = [(0, next(serial), GpuletUp(g.id)) for g in plan.gpulets]
    requests = {r.id: r for r in arrivals(problem, plan, random)}
    due += [(r.arrival, next(serial), Arrived(r)) for r in requests.values()]
    due.sort()
    steps: list[Step] = []
    late = busy = end = 0
    used: dict[int, int] = {}
    while due:
        now, _, event = heappop(due)
        steps.append((now, (event,)))
        for command in scheduler.step(now, event):
            if isinstance(command, Start):
                took = max(1, round(command.expected * random.gauss(1, NOISE)))
                heappush(due, (now + took, next(serial), Finished(command.batch)))
                busy += took
                on = command.on
                assert isinstance(on, int)
                used[plan.gpulets[on].size.sms] = used.get(plan.gpulets[on].size.sms, 0) + 1
            elif isinstance(command, Answer):
                late += sum(now > requests[i].deadline for i in command.requests)
        end = now
    facts = {"busy": busy / end / len(plan.gpulets), "attainment": 1 - late / REQUESTS, "sizes_used": len(used)}
    return steps, recorder, facts


def feed(problem: Problem, plan: Plan, dispatcher: Dispatcher, steps: list[Step]) -> float:
    """Microseconds of CPU per request, of all steps on a fresh core."""
    step = Scheduler(problem.models, plan, dispatcher, Limits(REQUESTS, early_drop=False)).step
    before = process_time_ns()
    for now, events in steps:
        step(now, *events)
    return (process_time_ns() - before) / REQUESTS / 1000


def measure(gpulets: int, sizes: Sequence[int]) -> dict[str, float]:
    """Medians over the repeats of ELSA alone, and of the whole step with it."""
    problem, plan = make_fleet(gpulets, sizes)
    steps, said, facts = run(problem, plan)
    pairs = [
        (feed(problem, plan, Elsa(problem, plan), steps), feed(problem, plan, Repeater(said), steps))
        for _ in range(REPEATS)
    ]
    alone = [whole - without for whole, without in pairs]
    return {
        "us_per_request": median(alone),
        "least": min(alone),
        "most": max(alone),
        "us_per_request_with_core": median(whole for whole, _ in pairs),
        **facts,
    }


if __name__ == "__main__":
    by_gpulets = {f"{gpulets} gpulets, 5 size(s)": measure(gpulets, SIZES) for gpulets in (7, 14, 28, 56)}
    by_sizes = {f"56 gpulets, {len(sizes)} size(s)": measure(56, sizes) for sizes in ((42,), (14, 98))}
    record("elsa", {"requests": REQUESTS, **by_gpulets, **by_sizes})
