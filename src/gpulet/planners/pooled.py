"""Ours, where gpulets are counted by size: PARIS and every homogeneous pool to start from, a simulation as the judge.

PARIS (DAC 2022) balances segments of batches, which is not what holds most: a pool of the smallest size that is in time
for the largest requests often holds more. So counts are searched: from the best start on, one gpulet at a time gives way
to others, as long as the judge says that more is held. The dispatcher is searched with them: ELSA and FIFS run every
request alone; a gpulet that merges what waits into one batch serves more requests of models that run small batches no
faster than larger ones. The planners to start from and the judge are given, since planners know neither each other nor
a simulator.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import inf

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.cutting import Cutter
from gpulet.device import Size
from gpulet.errors import PlanError, ProfileError
from gpulet.plan import Gpulet, Plan, Promise
from gpulet.pools import Worth, group, pool_plan, usable

MERGING = "merging"
ALONE = ("elsa", "fifs")
"""Dispatchers, by the names that plans carry: batches of several requests, or each request alone."""
MERGED_PARTS = (0.6, 0.45)
"""Of the objective, that a merged batch may run: more leaves no time to wait, less fills no batch."""
GAIN = 1.01
"""A change that holds less than 1 % more is noise."""
MOST_JUDGED = 60


Key = tuple[Size, tuple[str, ...]]
"""A kind of gpulet in a pool: its size, and the models that it serves."""


def pooled(problem: Problem, *, starts: Sequence[Planner], worth: Worth, enough: float = inf) -> Plan | Infeasible:
    """The pool and the dispatcher that hold the most, with what the simulation held as its throughput.

    With `enough` the first start that holds so many times the demand is taken: for callers that only ask whether there is
    a plan.
    A start that cannot plan such devices or models (`PlanError`, `ProfileError`) is passed over; raises the first error
    when all are.
    """
    search = _Search(problem, worth, enough)
    errors: list[PlanError | ProfileError] = []
    for start in starts:
        try:
            outcome = start(problem)
        except (PlanError, ProfileError) as error:
            errors.append(error)
        else:
            search.consider(_made(outcome))
    if len(errors) == len(starts):
        raise errors[0]
    search.climb()
    return _outcome(problem, search)


class _Search:
    """Judges pools under every dispatcher; each set of counts once."""

    def __init__(self, problem: Problem, worth: Worth, enough: float) -> None:
        self.factor = 0.0
        self.plan = Plan(problem.devices)
        self._problem = problem
        self._worth = worth
        self._enough = enough
        self._cutter = Cutter(problem.devices, problem.slices)
        self._judged = 0
        self._seen: set[frozenset[tuple[Key, int]]] = set()

    def consider(self, plan: Plan) -> bool:
        """Whether a pool holds more than the best so far, which it then is."""
        before = self.factor
        key = frozenset(_pool(plan).items())
        if not plan.gpulets or key in self._seen or self.factor >= self._enough or self._problem.overfull(plan):
            return False
        self._seen.add(key)
        for variant in _variants(self._problem, plan):
            self._judged += 1
            least = self.factor * GAIN if self._enough == inf else self._enough
            factor = self._worth(self._problem, variant, least=least)
            if factor > self.factor:
                self.factor, self.plan = factor, variant
            if self.factor >= self._enough:
                break
        return self.factor > before

    def climb(self) -> None:
        """Change one gpulet at a time for others, until nothing holds more."""
        while self.factor and any(self.consider(plan) for plan in self._neighbours()):
            pass

    def _neighbours(self) -> Iterator[Plan]:
        """Pools with one gpulet less and as many of another kind in its stead as then fit."""
        pool = _pool(self.plan)
        for less, more in product(pool, self._kinds(pool)):
            if less != more and self._judged < MOST_JUDGED:
                changed = self._filled(pool - Counter([less]), more)
                groups = [group(self._problem, size, names, count) for (size, names), count in changed.items()]
                yield _made(pool_plan(self._problem, self._cutter, groups))

    def _kinds(self, pool: Counter[Key]) -> list[Key]:
        """Every size for every set of models that shares a gpulet already."""
        tenants = dict.fromkeys(names for _, names in pool)
        known = {names: [usable(self._problem, name, self._cutter.sizes) for name in names] for names in tenants}
        return [(s, n) for s, n in product(self._cutter.sizes, tenants) if all(s in some for some in known[n])]

    def _filled(self, pool: Counter[Key], more: Key) -> Counter[Key]:
        """As many of one kind as fit; where room is left, larger sizes first for the same models."""
        for size in (more[0], *reversed(usable(self._problem, more[1][0], self._cutter.sizes))):
            while self._cutter.fits(_by_size(pool + Counter([(size, more[1])]))):
                pool[size, more[1]] += 1
        return pool


def _made(outcome: Plan | Infeasible) -> Plan:
    return outcome.partial if isinstance(outcome, Infeasible) else outcome


def _pool(plan: Plan) -> Counter[Key]:
    return Counter((g.size, g.models) for g in plan.gpulets)


def _by_size(pool: Counter[Key]) -> dict[Size, int]:
    counts: dict[Size, int] = {}
    for (size, _), count in pool.items():
        counts[size] = counts.get(size, 0) + count
    return counts


def _variants(problem: Problem, plan: Plan) -> Iterator[Plan]:
    """The same pool under every dispatcher."""
    for name in ALONE:
        yield replace(plan, dispatcher=name)
    for part in MERGED_PARTS:
        gpulets = tuple(_merging(problem, g, part) for g in plan.gpulets)
        yield replace(plan, dispatcher=MERGING, gpulets=gpulets)


def _merging(problem: Problem, gpulet: Gpulet, part: float) -> Gpulet:
    """The gpulet with batches as large as run within that part of the objective."""
    turns = []
    for turn in gpulet.turns:
        model = problem.models[turn.model]
        most = problem.profile.largest_batch(turn.model, gpulet.size.sms, round(part * model.slo))
        batch = max(1, min(most, model.max_batch))
        turns.append(replace(turn, batch=batch, latency=problem.profile.latency(turn.model, gpulet.size.sms, batch)))
    return replace(gpulet, turns=tuple(turns), duty_cycle=sum(turn.latency for turn in turns))


def _outcome(problem: Problem, search: _Search) -> Plan | Infeasible:
    """The best plan with what it held; too late is given up, so nothing that is served takes longer than allowed."""
    promises = {
        name: Promise(rate, search.factor * rate if rate else 0.0, problem.models[name].slo, problem.models[name].slo)
        for name, rate in problem.demand.items()
    }
    plan = replace(search.plan, promises=promises)
    if search.factor >= 1:
        return problem.within_memory(plan)
    missing = {name: rate * (1 - search.factor) for name, rate in problem.demand.items()}
    name = max(missing, key=lambda n: missing[n])
    constraint = f"the best pool found holds {search.factor:.3f} of the rates in simulation"
    return Infeasible(name, constraint, f"lower its rate by {missing[name]:.1f}/s, or add a device", missing, plan)
