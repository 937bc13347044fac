"""Knees: the size beyond which more SMs stop paying for themselves, by each of the rules that papers give.

All take sizes in ascending order and answer with an index into them; of equal sizes the smallest wins.
"""

from collections.abc import Sequence

SLACK = 0.10
"""How far above the latency of the whole device a knee may lie (D-STACK's search; the number is ours)."""


def knee(sizes: Sequence[float], values: Sequence[float]) -> int:
    """The index of the knee of a rising, concave curve: the point farthest above the chord of its ends.

    Kneedle's normalised difference (Satopaa et al., ICDCSW 2011, section III) without its smoothing, since a profile
    has a handful of points. Of equal points the smallest size wins; a straight or convex curve has its knee at the end.
    """
    span, rise = sizes[-1] - sizes[0], values[-1] - values[0]
    if span <= 0 or rise <= 0:
        return 0
    lift = [(v - values[0]) / rise - (s - sizes[0]) / span for s, v in zip(sizes, values, strict=True)]
    best = max(range(len(lift)), key=lift.__getitem__)
    return best if lift[best] > 1e-9 else len(sizes) - 1  # noqa: PLR2004 (rounding, not a margin)


def efficient(sizes: Sequence[int], latencies: Sequence[float]) -> int:
    """The index where 1 / (latency^2 x size) is largest: D-STACK's efficacy of one batch (Dhakal et al., TCC 2024).

    The paper says that its knee condition (Eq. 6) has the form of its efficacy (Eq. 7-9); that it is this function is
    inferred: 1 / (latency x size) has its maximum at one SM and cannot be meant.
    """
    return min(range(len(sizes)), key=lambda i: latencies[i] * latencies[i] * sizes[i])


def within(sizes: Sequence[int], latencies: Sequence[float], slack: float = SLACK) -> int:
    """The index of the smallest size whose latency is at most `1 + slack` times that of the largest size."""
    return next(i for i in range(len(sizes)) if latencies[i] <= latencies[-1] * (1 + slack))
