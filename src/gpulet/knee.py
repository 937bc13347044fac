"""Knees: the size beyond which more SMs stop paying for themselves."""

from collections.abc import Sequence


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
