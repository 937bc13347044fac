"""Fitting interference models to measured pairs, and how wrong they are on pairs they have not seen.

A table of pairs has `model1,model2,batch1,batch2,share1_pct,share2_pct,latency1_ms,latency2_ms`; what each side does
alone comes from a solo table with `model,share_pct,batch,latency_ms,l2_pct,dram_pct`. Every pair gives two
observations: each side beside the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gpulet.errors import ProfileError
from gpulet.importing.table import Line, Table
from gpulet.interference import CONSTANT, FEATURES, LINEAR, OURS, Interference, Link, Side
from gpulet.units import from_ms

PAIR_COLUMNS = ("model1", "model2", "batch1", "batch2", "share1_pct", "share2_pct", "latency1_ms", "latency2_ms")
SOLO_COLUMNS = ("model", "share_pct", "batch", "latency_ms", "l2_pct", "dram_pct")
RIDGE = 0.03
"""Weight of the penalty on standardised coefficients; 0.003 to 0.1 make little difference (docs/decisions/0008)."""
HELD_BACK = 0.3
SEEDS = tuple(range(20))

Floats = NDArray[np.float64]
Fit = Callable[["Sequence[Seen]"], Interference]


@dataclass(frozen=True, slots=True)
class Seen:
    """One side of a measured pair: `slowdown` is its latency beside the other over its latency alone."""

    pair: int
    victim: Side
    corunner: Side
    slowdown: float

    @property
    def models(self) -> tuple[str, str]:
        """The pair of models, in no order."""
        first, second = sorted((self.victim.model, self.corunner.model))
        return first, second


@dataclass(frozen=True, slots=True)
class Errors:
    """Percentiles of |predicted - measured| / measured latency, in percent."""

    median_pct: float
    p90_pct: float
    p95_pct: float


def read_pairs(pairs: Table, solo: Table) -> tuple[Seen, ...]:
    """Both observations of every pair; raises `ProfileError` where a side has no solo measurement."""
    pairs.need(PAIR_COLUMNS, "a table of pairs")
    alone = _read_solo(solo)
    return tuple(chain.from_iterable(_observations(n, line, alone) for n, line in enumerate(pairs.lines)))


_Key = tuple[str, float, int]


def _read_solo(solo: Table) -> Mapping[_Key, Side]:
    solo.need(SOLO_COLUMNS, "a solo table")
    sides = {}
    for line in solo.lines:
        share, batch = line.above_zero("share_pct", 100), line.count("batch")
        l2, dram = (line.not_negative(name, 100) / 100 for name in ("l2_pct", "dram_pct"))
        latency = from_ms(line.above_zero("latency_ms"))
        sides[line.text("model"), share, batch] = Side(l2, dram, share / 100, batch, latency, line.text("model"))
    return sides


def _observations(number: int, line: Line, alone: Mapping[_Key, Side]) -> Iterator[Seen]:
    one, two = _side(line, "1", alone), _side(line, "2", alone)
    for victim, corunner, name in ((one, two, "latency1_ms"), (two, one, "latency2_ms")):
        yield Seen(number, victim, corunner, from_ms(line.above_zero(name)) / victim.latency)


def _side(line: Line, which: str, alone: Mapping[_Key, Side]) -> Side:
    key = line.text(f"model{which}"), line.above_zero(f"share{which}_pct", 100), line.count(f"batch{which}")
    if key not in alone:
        msg = f"{line.where}: no solo measurement of {key[0]} at {key[1]:g} % with batch {key[2]}"
        raise ProfileError(msg)
    return alone[key]


# predictors -----------------------------------------------------------------------------------------------------------


def fit_none(_seen: Sequence[Seen]) -> Interference:
    """Nobody slows anybody."""
    return Interference(CONSTANT, (1.0,), 1.0)


def fit_constant(seen: Sequence[Seen]) -> Interference:
    """The median slowdown, whoever runs beside whom."""
    return Interference(CONSTANT, (float(np.median([s.slowdown for s in seen])),))


def fit_linear(seen: Sequence[Seen]) -> Interference:
    """gpu-lets' model: least squares on L2 and DRAM use of both sides and a constant."""
    matrix, slowdowns = _design(LINEAR, seen)
    solution = np.linalg.lstsq(matrix, slowdowns, rcond=None)[0]
    return Interference(LINEAR, tuple(solution.tolist()))


def fit_ours(seen: Sequence[Seen]) -> Interference:
    """Ridge regression of the log slowdown on `OURS`, standardised; never above the largest slowdown that was seen."""
    matrix, slowdowns = _design(OURS[1:], seen)
    target = np.log(slowdowns)
    mean, spread = matrix.mean(0), matrix.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = (matrix - mean) / spread
    normal = scaled.T @ scaled / len(target) + RIDGE * np.eye(len(spread))
    weights = np.linalg.solve(normal, scaled.T @ (target - target.mean()) / len(target)) / spread
    intercept = float(target.mean() - mean @ weights)
    ceiling = max(1.0, float(slowdowns.max()))
    return Interference(OURS, (intercept, *weights.tolist()), ceiling, Link.LOG)


PREDICTORS: Mapping[str, Fit] = {
    "none": fit_none,
    "constant": fit_constant,
    "linear": fit_linear,
    "gpulet": fit_ours,
}


def _design(features: Sequence[str], seen: Sequence[Seen]) -> tuple[Floats, Floats]:
    rows = [[FEATURES[name](s.victim, s.corunner) for name in features] for s in seen]
    return np.array(rows), np.array([s.slowdown for s in seen])


# errors ---------------------------------------------------------------------------------------------------------------


def errors_of(model: Interference, seen: Sequence[Seen]) -> list[float]:
    """Relative error of each observation, in percent."""
    return [100 * abs(model.pair(s.victim, s.corunner) - s.slowdown) / s.slowdown for s in seen]


def percentiles(errors: Sequence[float]) -> Errors:
    """Their median, 90th and 95th percentile."""
    return Errors(*(float(value) for value in np.percentile(errors, [50, 90, 95])))


def held_back(fit: Fit, seen: Sequence[Seen], seed: int) -> Errors:
    """Fit 70 % of the pairs, test on the other 30 %; both sides of a pair stay together."""
    pairs = len({s.pair for s in seen})
    chosen = set(np.random.default_rng(seed).permutation(pairs)[: round(HELD_BACK * pairs)].tolist())
    model = fit([s for s in seen if s.pair not in chosen])
    return percentiles(errors_of(model, [s for s in seen if s.pair in chosen]))


def held_back_mean(fit: Fit, seen: Sequence[Seen]) -> Errors:
    """The same, as the mean over 20 random splits."""
    runs = [held_back(fit, seen, seed) for seed in SEEDS]
    columns = zip(*((r.median_pct, r.p90_pct, r.p95_pct) for r in runs), strict=True)
    return Errors(*(float(np.mean(column)) for column in columns))


def pair_left_out(fit: Fit, seen: Sequence[Seen]) -> Errors:
    """Fit without one pair of models, test on it, for every pair of models in turn; the errors pooled."""
    errors: list[float] = []
    for models in sorted({s.models for s in seen}):
        model = fit([s for s in seen if s.models != models])
        errors += errors_of(model, [s for s in seen if s.models == models])
    return percentiles(errors)
