"""Random schedules of faults and changes of plan against the core, under virtual time: every rule is watched at every step.

`python tests/faults.py --schedules N [--seed S]` runs many; one seed is one schedule, and says the same every time.
"""

import argparse
import sys
import time
from dataclasses import replace
from random import Random

from gpulet.core.control import Controlled, Steering
from gpulet.core.messages import (
    Adopt,
    Closed,
    DeviceIn,
    DeviceOut,
    Enlist,
    Explain,
    Force,
    Freeze,
    Hint,
    NotBuilt,
    Opened,
    Replanned,
    Revise,
)
from gpulet.core.metrics import Metrics
from gpulet.core.replan import Watch as RateWatch
from gpulet.core.replan import Watching
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.device import Mechanism
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.plan import Plan
from gpulet.units import MS
from support import (
    CARVES,
    DISPATCHERS,
    MortalExecutor,
    Watch,
    models_of,
    problem_of,
    requests_of,
    tiny_plan,
    tiny_profile,
)

NAMES = ["m0", "m1", "m2"]
NEWCOMER = models_of(4)[3]
EXCHANGED = [
    "bound on arrival",
    "duty cycle, patient",
    "idle picks",
    "least work",
    "nexus",
    "paris-elsa",
    "paris-fifs",
    "segments",
]
"""Dispatchers that may follow one another: they ask for the same gpulets in different queues."""
SIZES = (1, 2, 4, 8)
MECHANISMS = (Mechanism.GREEN, Mechanism.MPS, Mechanism.CPU, Mechanism.WHOLE)
RULES = Watching(look=5 * MS, patience=10 * MS, lead=5 * MS)


class LeapingTimer(VirtualTimer):
    """A clock that jumps ahead, as where a machine sleeps: what was due meanwhile is late, all of it at one instant.

    The server's clock is monotonic: it never jumps back.
    """

    floor = 0

    @property
    def instant(self):
        return max(self._instant, self.floor)

    @instant.setter
    def instant(self, value):
        self._instant = value

    def leap(self, by):
        self.floor = self.instant + by


class FaultyExecutor(MortalExecutor):
    """Builds take their time, and fail as it is drawn; what is built may die before it serves."""

    def __init__(self, random, *args):
        super().__init__(*args)
        self.random = random

    def build(self, command):
        self._build_time = self.random.choice((0, 0, 1, 5, 20)) * MS
        super().build(command)

    def _built(self, number):
        fresh = self._building[number]
        if self.random.random() < 0.2:
            for gpulet in self._building.pop(number):
                del self._gpulets[gpulet]
            self._emit(NotBuilt(number, "drawn"))
            return
        super()._built(number)
        if fresh and self.random.random() < 0.2:
            self.kill(fresh[0])
            self._timer.at(self._timer.now() + 3 * MS, lambda _: self.revive(fresh[0]), 0)

    def retire(self, command):
        super().retire(command)
        self.dead.discard(command.gpulet)

    def kill(self, gpulet):
        if gpulet in self._gpulets:
            super().kill(gpulet)

    def revive(self, gpulet):
        if gpulet in self._gpulets:
            super().revive(gpulet)


def plan_of(random, devices, mechanism, name, names=NAMES):
    """A plan at random in which each model has a place at least; in one of eight, not."""
    while True:
        layout = []
        for _ in range(devices):
            cut, left = [], 8
            while left and random.random() < 0.8:
                size = random.choice([s for s in SIZES if s <= left])
                cut.append((size, random.sample(names, random.randint(1, 3)), random.choice((1, 1, 1, 2))))
                left -= size
            layout.append(cut)
        there = {model for cut in layout for _, models, _ in cut for model in models}
        if len(there) == len(names) or (there and random.random() < 0.1):
            plan = tiny_plan(layout, names, mechanism)
            return Plan(plan.devices) if name in CARVES else plan


class Schedule:
    """One seed: a dispatcher, plans, arrivals, deaths, cancels, admin's calls, a new model, leaps of the clock, in 60 ms."""

    def __init__(self, seed):
        self.seed = seed
        self.random = random = Random(seed)
        self.name = random.choice(sorted(DISPATCHERS))
        self.mechanism = random.choice(MECHANISMS)
        self.devices = random.randint(1, 3)
        self.names = list(NAMES)
        self.others = random.sample(EXCHANGED, 2) if self.name in EXCHANGED else []
        models = models_of(3)
        plan = self.plan()
        limits = Limits(random.choice((2, 5, 1000)), random.random() < 0.5)
        problem = problem_of(models, plan, tiny_profile(NAMES))

        def make(now, plan):  # some of them can only be made for a demand that fits
            name = plan.dispatcher or self.name
            now = replace(problem, models=now.models, profile=now.profile)
            return DISPATCHERS[name](now, replace(plan, dispatcher=""))

        scheduler = Scheduler(problem.models, plan, make(problem, plan), limits)
        estimator = RateWatch(problem.models, problem.demand, 0, RULES)
        steering = Steering(fewest=random.random() < 0.5, pause=3 * MS, lost=20 * MS, missed=4 * MS)
        self.core = Controlled(scheduler, problem, plan, estimator, make, steering)
        self.watch = Watch(plan, limits)
        self.timer, self.metrics = LeapingTimer(), Metrics(NAMES, plan)
        self.changes = self.explained = self.leaps = 0
        observers = [self.watch.observe, self.observe]
        delay = random.choice((0, 1, 4)) * MS
        self.simulation = Simulation(self.core, self.timer, self.metrics, observers, self.answer, delay)
        self.executor = FaultyExecutor(random, problem.profile, plan, self.timer, self.simulation.feed)
        self.simulation.attach(self.executor, self.executor)
        self.requests = requests_of(self.arrivals(), [*models, NEWCOMER])
        self.disturb(models)

    def plan(self):
        plan = plan_of(self.random, self.devices, self.mechanism, self.name, self.names)
        return replace(plan, dispatcher=self.random.choice(("", *self.others)))

    def enlist(self, _):
        """From now on planners know of it as well."""
        self.names.append(NEWCOMER.name)
        points = tiny_profile([NEWCOMER.name]).points
        self.executor.learn(points)
        self.simulation.feed(Enlist(NEWCOMER, points, 10.0))

    def arrivals(self):
        random, busy = self.random, self.random.choice((20, 60))
        return [
            (
                random.randint(0, 60) * MS,
                random.randint(0, 3),
                random.randint(1, 4),
                random.choice(("", "", "7")),
                random.choice((0, 0, 1)),
                random.random() < 0.5,
            )
            for _ in range(random.randint(0, busy))
        ]

    def answer(self, asked):
        """A planner that says anything."""
        if self.random.random() < 0.2:
            return Replanned(asked.number, None, "drawn", 0.5, 0.5)
        plan = self.plan()
        if plan.gpulets and not {g.device for g in plan.gpulets} <= set(asked.devices):
            return Replanned(asked.number, None, "drawn on a device that is out", 1.0, 1.0)
        return Replanned(asked.number, plan, "", self.random.random(), self.random.random())

    def disturb(self, models):
        """Admin's calls, deaths, leaps of the clock."""
        random = self.random
        for ticket in range(1, random.randint(1, 5)):
            self.at(random.randint(0, 60), Force(ticket, self.plan()))
        for _ in range(random.randint(0, 3)):
            event = random.choice(
                (
                    Freeze(random.random() < 0.5),
                    DeviceOut(random.randrange(self.devices)),
                    DeviceIn(random.randrange(self.devices)),
                    Hint(random.choice(NAMES), random.choice((0.0, 500.0))),
                    Revise(replace(random.choice(models), slo=random.choice((5, 50)) * MS)),
                    Closed(random.choice((*NAMES, NEWCOMER.name))),
                    Opened(random.choice((*NAMES, NEWCOMER.name))),
                )
            )
            self.at(random.randint(0, 60), event)
        if random.random() < 0.5:
            self.timer.at(random.randint(0, 60) * MS, self.enlist, 0)
        for _ in range(random.randint(0, 4)):
            when, gpulet, back = random.randint(0, 60), random.randint(0, 6), random.randint(1, 20)
            self.timer.at(when * MS, self.executor.kill, gpulet)
            self.timer.at((when + back) * MS, self.executor.revive, gpulet)
        for _ in range(random.choice((0, 0, 0, 1, 2))):
            leap = random.choice((1, 7, 40, 300)) * MS
            self.leaps += leap
            self.timer.at(random.randint(0, 60) * MS, self.timer.leap, leap)

    def at(self, when, event):
        self.timer.at(when * MS, lambda _: self.simulation.feed(event), 0)

    def observe(self, now, events, commands):
        self.changes += sum(isinstance(command, Adopt) for command in commands)
        self.explained += sum(isinstance(command, Explain) for command in commands)
        up = {state.id for state in self.core.fleet.gpulets.values() if state.is_up}
        assert up <= self.watch.gpulets.keys(), "up without being in force"
        assert len(self.core.fleet.gpulets) == len(self.core.in_force.gpulets) or self.core.is_changing

    def run(self):
        """Whatever was drawn, every request has one answer, and in the end nothing is left over."""
        self.executor.carve()
        self.at(300, Freeze(is_on=True))
        self.simulation.run(self.requests, 500 * MS + self.leaps)
        if not self.core.is_idle or self.core.is_changing:  # crowded devices are slow
            self.simulation.run((), 5000 * MS)
        self.watch.finish()
        assert not self.core.is_changing, "a change never came to its end"
        assert not self.core._scheduler._handover.leaving  # noqa: SLF001 (that is the point)
        planned = {g.id for g in self.core.in_force.gpulets}
        assert self.executor._gpulets.keys() == planned, "the executor keeps what is in no plan"  # noqa: SLF001
        assert self.metrics.gpulets.keys() == planned
        return self.changes


def run(seeds):
    """Changes of plan in all of them; a schedule that breaks a rule says which it was."""
    changes = 0
    for seed in seeds:
        try:
            changes += Schedule(seed).run()
        except BaseException as error:
            error.add_note(f"schedule {seed}: python tests/faults.py --seed {seed} --schedules 1")
            raise
    return changes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    changes = run(range(asked.seed, asked.seed + asked.schedules))
    sys.stdout.write(
        f"{asked.schedules} schedules from seed {asked.seed}, {changes} changes of plan, every rule held; {time.monotonic() - began:.0f} s\n"
    )


if __name__ == "__main__":
    main()
