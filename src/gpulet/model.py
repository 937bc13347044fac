"""A model as the scheduler sees it: a name, an objective, a batch limit and a footprint."""

from dataclasses import dataclass

from gpulet.errors import ConfigError
from gpulet.units import MS, Duration


@dataclass(frozen=True, slots=True)
class Model:
    """What is served: `slo` is the time allowed from arrival to answer, `max_batch` counts rows.

    `memory` and `input_bytes` (of a row) are bytes, 0 where nobody knows them. `max_queue` requests may wait;
    0: as many as of any model. A request may wait `max_queue_delay` for its batch to fill while a gpulet is idle.
    Where no plan holds the demand, models of a higher `importance` number get less first, by `weight`, none less than
    `floor` of its demand.

    Raises `ConfigError` when the objective, the batch limit or the weight is not positive, or the floor no share.
    """

    name: str
    slo: Duration
    max_batch: int = 32
    memory: int = 0
    input_bytes: int = 0
    max_queue: int = 0
    max_queue_delay: Duration = 0
    importance: int = 0
    weight: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.slo <= 0:
            msg = f"model {self.name}: slo_ms must be above 0, is {self.slo / MS:g}"
            raise ConfigError(msg)
        if self.max_batch < 1:
            msg = f"model {self.name}: max_batch must be at least 1, is {self.max_batch}"
            raise ConfigError(msg)
        if not self.weight > 0 or not 0 <= self.floor <= 1:
            msg = f"model {self.name}: weight must be above 0 and floor within 0 to 1, are {self.weight:g} and {self.floor:g}"
            raise ConfigError(msg)
