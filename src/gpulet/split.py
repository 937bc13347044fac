"""An application's objective split into budgets for its stages (Nexus, SOSP 2019, section 6.2).

The objective is cut into steps. A stage u that is given k of them runs the largest batch whose latency is at most half
of that time, since a request may just miss a batch; its requests R_u then need R_u / throughput_u(k) devices. Bottom-up
f(u, t) = min over k of R_u / throughput_u(k) + the sum over children c of f(c, t - k): the fewest devices of whole size.
Only trees have such a sum. Of equal splits the one that leaves most time to later stages is taken.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from gpulet.application import Application, Stage
from gpulet.errors import ConfigError
from gpulet.profile import Curve
from gpulet.units import SECOND, Duration, to_ms

Throughput: TypeAlias = Callable[[Stage, Duration], float]
"""Rows/s of a stage's model on one device when a request may take so long; 0 when it cannot be done."""

STEPS = 100
_NONE = float("inf")


def best_throughput(curve: Curve, max_batch: int, time: Duration) -> float:
    """Rows/s on a device of this latency by rows, by batches that take at most half of `time`."""
    fits = [rows * SECOND / took for rows, took in enumerate(curve[:max_batch], start=1) if 2 * took <= time]
    return max(fits, default=0.0)


def devices_per_rate(application: Application, throughput: Throughput) -> float:
    """Devices that one request/s of the application needs under the budgets of its stages; infinite where one fails.

    Its inverse is what Nexus calls the average throughput of a split.
    """
    counts = application.requests_per_request()
    return sum(_cost(counts[s.name], throughput(s, s.budget)) for s in application.stages)


def split(application: Application, throughput: Throughput, steps: int = STEPS) -> Application:
    """The application with the budgets that need the fewest devices.

    Raises `ConfigError` for a stage with several parents, and where the objective is too short for any split.
    """
    for stage in application.stages:
        if len(stage.after) > 1:
            msg = f"application {application.name}: stage {stage.name} waits for {len(stage.after)} stages "
            msg += f'({", ".join(stage.after)}); split = "nexus" takes trees only, write budgets and split = "fixed"'
            raise ConfigError(msg)
    search = _Search(application, throughput, steps)
    budgets: dict[str, Duration] = {}
    for root in (stage for stage in application.stages if not stage.after):
        if search.least(root.name, steps) == _NONE:
            msg = f"application {application.name}: no split of its SLO of {to_ms(application.slo):g} ms into {steps} "
            raise ConfigError(msg + f"steps gives every stage from {root.name} on time for two batches of one row")
        search.walk(root.name, steps, budgets)
    stages = tuple(replace(stage, budget=budgets[stage.name]) for stage in application.stages)
    return replace(application, stages=stages)


class _Search:
    """The tables of one split: `_best[u][t]` is (devices, steps for u) of u and all behind it within t steps."""

    def __init__(self, application: Application, throughput: Throughput, steps: int) -> None:
        self._application = application
        self._time = partial(_time, application.slo, steps)
        counts = application.requests_per_request()
        self._best: dict[str, list[tuple[float, int]]] = {}
        for stage in reversed(application.ordered()):
            costs = [_cost(counts[stage.name], throughput(stage, self._time(k))) for k in range(steps + 1)]
            children = [self._best[child.name] for child in application.children(stage.name)]
            self._best[stage.name] = [self._choose(costs, children, t) for t in range(steps + 1)]

    @staticmethod
    def _choose(costs: list[float], children: list[list[tuple[float, int]]], time: int) -> tuple[float, int]:
        if not children:  # nobody waits for what is left over
            least, k = min((costs[k], -k) for k in range(time + 1))
            return least, -k
        return min((costs[k] + sum(child[time - k][0] for child in children), k) for k in range(time + 1))

    def least(self, name: str, time: int) -> float:
        """The fewest devices for a stage and all behind it within `time` steps."""
        return self._best[name][time][0]

    def walk(self, name: str, time: int, budgets: dict[str, Duration]) -> None:
        """Write down the budgets of a stage and all behind it."""
        steps = self._best[name][time][1]
        budgets[name] = self._time(steps)
        for child in self._application.children(name):
            self.walk(child.name, time - steps, budgets)


def _cost(requests: float, throughput: float) -> float:
    return requests / throughput if throughput else _NONE


def _time(slo: Duration, steps: int, k: int) -> Duration:
    """Rounded down, so that no path exceeds the objective."""
    return slo * k // steps
