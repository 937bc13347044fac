"""How many rows a request brings: a distribution over 1, 2, ... rows.

PARIS partitions for it (DAC 2022, section 4): small requests to small gpulets, large ones to large ones.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import erf, inf, log, sqrt

from gpulet.errors import ConfigError

DEFAULT_LARGEST = 32
MOST_ROWS = 4096
"""A slip of digits, beyond that."""
_NEVER = 1e-9


@dataclass(frozen=True, slots=True)
class RowDistribution:
    """`weights[b - 1]` is the probability that a request has `b` rows; they sum to 1, and the last is above 0.

    Raises `ConfigError` for weights that are no distribution.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        wrong = next((w for w in self.weights if not 0 <= w < inf), None)
        if wrong is not None:
            msg = f"rows of a request: a weight must be 0 or more, is {wrong:g}"
            raise ConfigError(msg)
        total = sum(self.weights)
        if not 0 < total < inf or len(self.weights) > MOST_ROWS:
            msg = f"rows of a request: {len(self.weights)} weights that sum to {total:g}; "
            raise ConfigError(msg + f"1 to {MOST_ROWS} that sum to more than 0 are a distribution")
        largest = max(b for b, w in enumerate(self.weights, start=1) if w)
        object.__setattr__(self, "weights", tuple(w / total for w in self.weights[:largest]))

    @property
    def largest(self) -> int:
        """The most rows of a request."""
        return len(self.weights)

    @property
    def likely(self) -> tuple[tuple[int, float], ...]:
        """Rows and their probability, without those that come less than once in a billion requests."""
        return tuple((b, w) for b, w in enumerate(self.weights, start=1) if w >= _NEVER)

    @property
    def mean(self) -> float:
        """Rows of a request on average."""
        return sum(b * w for b, w in enumerate(self.weights, start=1))

    def percentile(self, percent: float) -> int:
        """The fewest rows that so many percent of the requests do not exceed."""
        reached = accumulate(self.weights)
        return next((b for b, part in enumerate(reached, start=1) if part >= percent / 100 - 1e-12), self.largest)


def fixed(rows: int) -> RowDistribution:
    """Every request has `rows` rows."""
    if not 1 <= rows <= MOST_ROWS:
        msg = f"rows of a request: must be 1 to {MOST_ROWS}, is {rows}"
        raise ConfigError(msg)
    return RowDistribution((*(0.0 for _ in range(rows - 1)), 1.0))


SINGLE = fixed(1)


def lognormal(mu: float, sigma: float, largest: int = DEFAULT_LARGEST) -> RowDistribution:
    """Rows b with ln b ~ Normal(mu, sigma), rounded to whole rows and cut to 1..largest (the mass of (b - 0.5, b + 0.5], scaled up).

    The form is PARIS's (section 5); its location parameter is not known, and DeepRecSys (ISCA 2020) draws alike.
    """
    if not (-inf < mu < inf and 0 < sigma < inf and 1 <= largest <= MOST_ROWS):
        msg = f"rows of a request: lognormal:{mu:g},{sigma:g},{largest}: mu must be finite, sigma above 0, and the "
        raise ConfigError(msg + f"largest 1 to {MOST_ROWS}")
    reached = [_below((log(b + 0.5) - mu) / sigma) for b in range(largest + 1)]
    weights = tuple(high - low for low, high in pairwise(reached))
    if sum(weights) <= 0:
        msg = f"rows of a request: lognormal:{mu:g},{sigma:g} has nothing within 1 to {largest}: it sums to 0"
        raise ConfigError(msg)
    return RowDistribution(weights)


def _below(z: float) -> float:
    return (1 + erf(z / sqrt(2))) / 2


def parse_rows(text: str) -> RowDistribution:
    """`4`, `lognormal:MU,SIGMA[,LARGEST]` with MU a number or ln4, or `weights:W1,W2,...`; raises `ConfigError`."""
    name, _, arguments = text.partition(":")
    parts = arguments.split(",") if arguments else []
    try:
        match name, parts:
            case "lognormal", [mu, sigma]:
                return lognormal(parse_mu(mu), float(sigma))
            case "lognormal", [mu, sigma, largest]:
                return lognormal(parse_mu(mu), float(sigma), int(largest))
            case "weights", [*weights]:
                return RowDistribution(tuple(float(w) for w in weights))
            case _:
                return fixed(int(text))
    except ValueError:
        msg = f"rows of a request {text!r}: give N, lognormal:MU,SIGMA[,LARGEST] or weights:W1,W2,..."
        raise ConfigError(msg) from None


def parse_mu(text: str) -> float:
    """A number, or `ln4` for the logarithm of one; raises `ValueError`."""
    return log(float(text.removeprefix("ln"))) if text.startswith("ln") else float(text)
