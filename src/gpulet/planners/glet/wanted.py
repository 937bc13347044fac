"""A model that is being placed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpulet.model import Model

if TYPE_CHECKING:
    from gpulet.planners.glet.board import Part
    from gpulet.planners.glet.estimate import Saturation


@dataclass(slots=True)
class Wanted:
    """What is still to be placed: `rate` rows/s, and `lost` rows/s that neighbours lost to this model.

    `estimate` gives the parts that a rate would take on an empty fleet.
    """

    model: Model
    rate: int
    table: Mapping[int, "Saturation"]
    estimate: "Callable[[int], list[Part]]"
    lost: int = 0
