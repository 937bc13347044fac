"""The ideal scheduler of gpu-lets (ATC 2022, section 6.3): try every cut of the devices, place on each, keep the first.

Ideal in the cuts only: the placement inside each cut is a given planner's, so a better one may exist (`exact` is the
true optimum). Equal devices are interchangeable, so 4 devices have 35 cuts rather than 4^4 = 256. The planner's own
cut, where it is free to choose, is one of the candidates and comes first.
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Protocol

from gpulet.core.ports import Infeasible, Problem
from gpulet.plan import Plan

_WHOLE = 100


class Place(Protocol):
    """A planner that can be told how the devices are cut."""

    def __call__(self, problem: Problem, *, cuts: Sequence[Sequence[int]]) -> Plan | Infeasible:
        """Plan; `cuts` are each device's shares in percent, none leaves the planner free."""
        ...


def ideal(problem: Problem, *, place: Place) -> Plan | Infeasible:
    """The first cut on which `place` serves everything; its own refusal where there is none."""
    outcome = place(problem, cuts=())
    if isinstance(outcome, Plan):
        return outcome
    for cuts in combinations_with_replacement(_splits(problem), len(problem.devices)):
        found = place(problem, cuts=cuts)
        if isinstance(found, Plan):
            return found
    return outcome


def _splits(problem: Problem) -> list[tuple[int, ...]]:
    """The whole device, and every pair of legal shares that fills it: 50/50, 60/40 and 80/20 on gpu-lets' devices."""
    smallest = max(problem.profile.sizes(name)[0] for name in problem.models)
    shares = {round(size.share_pct) for size in problem.devices[0].sizes() if size.sms >= smallest}
    pairs = [(share, _WHOLE - share) for share in sorted(shares) if _WHOLE - share in shares and 2 * share >= _WHOLE]
    return [(_WHOLE,), *pairs]
