"""Who gets less when no plan holds the demand: the least important first, by weight, and nobody less than its floor.

Models of a lower `importance` number are more important. Before anything is taken from a class of models, all that are less
important are down to their floors. Within a class a model of twice the weight gives half as much of its demand.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from gpulet.model import Model

Found = TypeVar("Found")
_HALVINGS = 4


def allotted(models: Mapping[str, Model], demand: Mapping[str, float], depth: float) -> dict[str, float]:
    """The demand less what `depth` takes: one whole number for each class at its floors, the least important first."""
    classes = sorted({models[name].importance for name in demand}, reverse=True)
    given = dict(demand)
    for place, importance in enumerate(classes):
        part = min(1.0, max(0.0, depth - place))
        mine = [name for name in demand if models[name].importance == importance]
        lightest = min(models[name].weight for name in mine)
        for name in mine:
            model = models[name]
            taken = part if part == 1 else part * lightest / model.weight
            given[name] = demand[name] * (1 - taken * (1 - model.floor))
    return given


def shed(
    models: Mapping[str, Model], demand: Mapping[str, float], plan: Callable[[Mapping[str, float]], Found | None]
) -> Found | None:
    """What `plan` gives for the least depth at which it gives anything, to a sixteenth of all classes; None where nothing fits."""
    low, high = 0.0, float(len({models[name].importance for name in demand}))
    best = plan(allotted(models, demand, high))
    if best is None:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = plan(allotted(models, demand, middle))
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best
