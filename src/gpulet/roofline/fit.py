"""The five numbers from a few measured points: least squares of the log of latency, with weak priors.

Eight points know five numbers only just: priors keep those that no point speaks of near their start. The method is
Levenberg-Marquardt on the logs of the numbers, from several starts (Marquardt, SIAM J. Appl. Math. 1963).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from gpulet.errors import ProfileError
from gpulet.roofline import FORMS, Floats, Form, Hardware, Numbers, Roofline, Work, latencies
from gpulet.units import SECOND, Duration

ACCEPTED_PCT = 15.0
"""A fit whose worst held-out point is farther off gives way to the table (the threshold is ours)."""
FEWEST = 5
_PRIOR = 0.02
"""Weight of one standard deviation from the prior: as much as being 2 % off at one point."""
_SPREAD = np.array([2, 1, 2, 1, 0.5])
_STEPS, _TRIES, _SLOPE = 60, 8, 1e-5
_BOUND = 2.0
"""No step changes a number by more than e^2."""

Sample = tuple[int, int, Duration]
"""Size in SMs, rows, measured latency."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit, the sum of squares of its residuals, and its worst error at points it has not seen, in percent."""

    model: Roofline
    cost: float
    held_out_pct: float

    @property
    def is_accepted(self) -> bool:
        """Whether to plan with it rather than with the table."""
        return self.held_out_pct <= ACCEPTED_PCT


def fitted(
    points: Sequence[Sample], held_out: Sequence[Sample], work: Work, hardware: Hardware, form: Form = FORMS[0]
) -> Fitted:
    """Fit to `points`, judge by `held_out`; raises `ProfileError` for fewer than `FEWEST` points or none held out."""
    if len(points) < FEWEST or not held_out:
        msg = f"{len(points)} points to fit and {len(held_out)} to hold out; five numbers need {FEWEST} points and a check"
        raise ProfileError(msg)
    least = min(latency for _, _, latency in points) / SECOND
    prior = np.log([least / 2, 0.5, 20, 1, 0.5])

    def residuals(logs: Floats) -> Floats:
        model = Roofline(work, hardware, Numbers(*np.exp(logs).tolist()), form)
        return np.concatenate([_logs_off(model, points), _PRIOR * (logs - prior) / _SPREAD])

    ends = [_descended(residuals, start) for start in _starts(least)]
    best = min(ends, key=lambda logs: _cost(residuals(logs)))
    model = Roofline(work, hardware, Numbers(*np.exp(best).tolist()), form)
    return Fitted(model, _cost(_logs_off(model, points)), max(errors_pct(model, held_out)))


def best_form(fits: Mapping[Form, Iterable[Fitted]]) -> Form:
    """The form whose fits of all models of a device are closest to the points they were fitted to.

    All forms have five numbers, so that none is closer for having more.
    """
    return min(fits, key=lambda form: sum(f.cost for f in fits[form]))


def errors_pct(model: Roofline, samples: Sequence[Sample]) -> list[float]:
    """|computed - measured| / measured, in percent, of each sample."""
    return [100 * abs(model.latency(size, rows) - took) / took for size, rows, took in samples]


def _logs_off(model: Roofline, samples: Sequence[Sample]) -> Floats:
    size, rows, took = np.array(samples, dtype=float).T
    off: Floats = np.log(latencies(size, rows, model) * SECOND / took)
    return off


def _starts(least: float) -> Iterable[Floats]:
    """Logs of the numbers to start from; `least` is the shortest latency in seconds."""
    grid = product((least / 8, least * 0.8), (0.2, 0.7), (1.0, 5.0, 40.0), (0.3, 3.0))
    return (np.log([*start, 0.5]) for start in grid)


def _cost(residuals: Floats) -> float:
    return float(residuals @ residuals)


def _descended(residuals: Callable[[Floats], Floats], start: Floats) -> Floats:
    """Levenberg-Marquardt: the bottom of the valley that `start` lies in."""
    at, off, damping = start, residuals(start), 1e-2
    for _ in range(_STEPS):
        slopes = _slopes(residuals, at, off)
        for _ in range(_TRIES):
            there = at + _step(slopes, off, damping)
            off_there = residuals(there)
            if _cost(off_there) < _cost(off):
                break
            damping *= 4
        else:
            return at
        is_flat = _cost(off) - _cost(off_there) < 1e-9 * _cost(off)
        at, off, damping = there, off_there, max(damping / 20, 1e-9)
        if is_flat:
            return at
    return at


def _slopes(residuals: Callable[[Floats], Floats], at: Floats, off: Floats) -> Floats:
    return np.stack([(residuals(at + _SLOPE * unit) - off) / _SLOPE for unit in np.eye(len(at))], axis=1)


def _step(slopes: Floats, off: Floats, damping: float) -> Floats:
    normal = slopes.T @ slopes
    damped = normal + damping * np.diag(np.diag(normal) + 1e-9)
    step: Floats = np.clip(np.linalg.solve(damped, -slopes.T @ off), -_BOUND, _BOUND)
    return step
