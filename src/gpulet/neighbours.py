"""A plan with its neighbours counted in: latencies, cycles and promises as they are beside what stands on the device."""

from collections.abc import Mapping
from dataclasses import replace

from gpulet.device import Mechanism
from gpulet.interference import Footprint, Interference, Side, footprint
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Profile
from gpulet.units import SECOND, Duration


def beside_neighbours(plan: Plan, profile: Profile, interference: Interference | None) -> Plan:
    """The same gpulets, slowed by the worst that each neighbour runs; batches that no longer fit are made smaller.

    Latencies are read from `profile` anew. Promises are, too: rows/s when every gpulet goes round without idling, and
    the worst cycle plus run. Whether they are kept is for `Plan.violations` to say. Models without a gpulet keep theirs, and
    so do those on uncut devices, whose planners count on crowding in a way of their own.
    """
    crowd = _Crowd(plan, profile, interference)
    slos = {name: promise.slo for name, promise in plan.promises.items()}
    gpulets = tuple(crowd.slowed(gpulet, slos) for gpulet in plan.gpulets)
    hosted = {name for g in gpulets if g.device not in crowd.uncut for name in g.models}
    promises = {n: _promise(n, p, gpulets) if n in hosted else p for n, p in plan.promises.items()}
    return replace(plan, gpulets=gpulets, promises=promises)


class _Crowd:
    """Who stands beside whom."""

    def __init__(self, plan: Plan, profile: Profile, interference: Interference | None) -> None:
        self._profile = profile
        self._interference = interference
        self.uncut = {d.index for d in plan.devices if d.mechanism is Mechanism.WHOLE}
        self._of_device: dict[int, list[Gpulet]] = {}
        for gpulet in plan.gpulets:
            self._of_device.setdefault(gpulet.device, []).append(gpulet)

    def slowed(self, gpulet: Gpulet, slos: Mapping[str, Duration]) -> Gpulet:
        """The gpulet with a cycle that its objectives allow, or with single rows if nothing does."""
        if gpulet.device in self.uncut:
            return gpulet
        slo = min((slos[name] for name in gpulet.models if name in slos), default=0)
        turns = [self._turn(turn, gpulet) for turn in gpulet.turns]
        while slo and 2 * sum(t.latency for t in turns) > slo and any(t.batch > 1 for t in turns):
            place = max(range(len(turns)), key=lambda i: (turns[i].batch > 1, turns[i].latency))
            turns[place] = self._turn(replace(turns[place], batch=turns[place].batch - 1), gpulet)
        runs = sum(t.latency for t in turns)
        duty = max(runs, min(gpulet.duty_cycle, slo - runs) if slo else gpulet.duty_cycle)
        return replace(gpulet, turns=tuple(turns), duty_cycle=duty)

    def _turn(self, turn: Turn, gpulet: Gpulet) -> Turn:
        mine = _footprint(self._profile, turn, gpulet)
        return replace(turn, latency=round(mine.slowed(self._factor(mine.side, gpulet))))

    def _factor(self, victim: Side, gpulet: Gpulet) -> float:
        if self._interference is None:
            return 1.0
        factor = 1.0
        for other in self._of_device[gpulet.device]:
            if other is not gpulet and other.turns:
                factor += max(self._interference.pair(victim, side) for side in self._sides(other)) - 1
        return min(factor, self._interference.ceiling)

    def _sides(self, gpulet: Gpulet) -> list[Side]:
        return [_footprint(self._profile, turn, gpulet).side for turn in gpulet.turns]


def _footprint(profile: Profile, turn: Turn, gpulet: Gpulet) -> Footprint:
    size = gpulet.size
    return footprint(profile, turn.model, size.sms, size.share_pct / 100, turn.batch, gpulet.processes)


def _promise(name: str, promise: Promise, gpulets: tuple[Gpulet, ...]) -> Promise:
    throughput, worst = 0.0, 0
    for gpulet in gpulets:
        runs = sum(turn.latency for turn in gpulet.turns)
        for turn in gpulet.turns:
            if turn.model == name:
                throughput += gpulet.replicas * turn.batch * SECOND / runs
                worst = max(worst, gpulet.duty_cycle + runs)
    return replace(promise, throughput=throughput, worst_latency=worst)
