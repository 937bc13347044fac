"""What one gpulet can do: some models in a duty cycle, with a batch each, such that everybody is in time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gpulet.core.ports import Problem
from gpulet.device import Size
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.units import SECOND, Duration

MOST_CONFIGURATIONS = 50_000
"""Over all sizes, before the needless are left out: some seconds."""
_ROUNDING = 1e-9


class Waits(StrEnum):
    """What a request of model m waits at most, and so what its SLO must hold."""

    CYCLE = "cycle"
    """gpu-lets (ATC'22): one duty cycle and all of its runs."""
    TURN = "turn"
    """Nexus (SOSP'19): one duty cycle and the run of m itself, since turns keep their order."""


@dataclass(frozen=True, slots=True)
class Option:
    """One model with one batch at one size."""

    model: Model
    batch: int
    latency: Duration


@dataclass(frozen=True, slots=True)
class Configuration:
    """What one gpulet of `size` does in every cycle."""

    size: Size
    options: tuple[Option, ...]

    @property
    def cycle(self) -> Duration:
        """One run of each."""
        return sum(option.latency for option in self.options)

    def rate(self, option: Option) -> float:
        """Rows/s of one of its models."""
        return option.batch * SECOND / self.cycle

    def worst(self, option: Option, waits: Waits) -> Duration:
        """The longest that a request of one of its models takes."""
        return self.cycle + (self.cycle if waits is Waits.CYCLE else option.latency)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a configuration must keep: the rule for waiting, and how many models it has at most (no limit when `None`)."""

    waits: Waits
    most_models: int | None


def wanted_models(problem: Problem) -> list[Model]:
    """The models that are asked for at all."""
    return [model for model in problem.models.values() if problem.demand.get(model.name, 0.0) > 0]


def configurations(problem: Problem, sizes: Sequence[Size], bounds: Bounds) -> tuple[Configuration, ...]:
    """Those that no other of the same or a smaller size makes needless, from the smallest size up.

    Raises `PlanError` when there are too many to look at.
    """
    wanted = wanted_models(problem)
    front = _Front(problem, wanted)
    left = MOST_CONFIGURATIONS
    for size in sizes:
        menu = [_menu(problem, size, model) for model in wanted]
        found = [Configuration(size, options) for options in islice(_meals(menu, bounds), left + 1)]
        left -= len(found)
        if left < 0:
            msg = f"{len(wanted)} models have more than {MOST_CONFIGURATIONS} configurations at {len(sizes)} sizes"
            raise PlanError(msg + ": too many for an exact plan; fewer models, a smaller max_batch or tighter SLOs")
        front.add(found)
    return tuple(front.kept)


def _menu(problem: Problem, size: Size, model: Model) -> list[Option]:
    """The batches that the model could run at this size."""
    is_known = size.sms >= problem.profile.sizes(model.name)[0]
    curve = problem.profile.curve(model.name, size.sms)[: model.max_batch] if is_known else ()
    return [Option(model, batch, latency) for batch, latency in enumerate(curve, start=1)]


def _meals(menu: Sequence[Sequence[Option]], bounds: Bounds) -> Iterator[tuple[Option, ...]]:
    """Every choice of at most one batch of each model that is in time; more rows or models only make it later."""
    most = len(menu) if bounds.most_models is None else bounds.most_models

    def extend(chosen: tuple[Option, ...], place: int) -> Iterator[tuple[Option, ...]]:
        if chosen:
            yield chosen
        for later in range(place, len(menu) if len(chosen) < most else place):
            for option in menu[later]:
                longer = (*chosen, option)
                if not _is_in_time(longer, bounds.waits):
                    break
                yield from extend(longer, later + 1)

    return extend((), 0)


def _is_in_time(options: tuple[Option, ...], waits: Waits) -> bool:
    cycle = sum(option.latency for option in options)
    if waits is Waits.CYCLE:
        return all(2 * cycle <= option.model.slo for option in options)
    return all(cycle + option.latency <= option.model.slo for option in options)


class _Front:
    """Configurations of which none gives every model as much as another of its own or a smaller size."""

    def __init__(self, problem: Problem, wanted: Sequence[Model]) -> None:
        self.kept: list[Configuration] = []
        self._demand = {model.name: problem.demand[model.name] for model in wanted}
        self._places = {model.name: place for place, model in enumerate(wanted)}
        self._vectors: NDArray[np.float64] = np.zeros((0, len(wanted)))

    def add(self, found: Iterable[Configuration]) -> None:
        """Add those of one size, which is larger than what was added before."""
        scored = [(self._vector(configuration), configuration) for configuration in found]
        scored.sort(key=lambda pair: -float(pair[0].sum()))  # nothing is outdone by what comes after it
        for vector, configuration in scored:
            if not (self._vectors >= vector * (1 - _ROUNDING)).all(axis=1).any():
                self._vectors = np.vstack([self._vectors, vector])
                self.kept.append(configuration)

    def _vector(self, configuration: Configuration) -> NDArray[np.float64]:
        vector = np.zeros(len(self._places))
        for option in configuration.options:
            name = option.model.name
            vector[self._places[name]] = configuration.rate(option) / self._demand[name]
        return vector
