"""How evenly models are treated."""

from collections.abc import Iterable


def jain(values: Iterable[float]) -> float:
    """Jain's index (sum x)^2 / (n sum x^2): 1 where all have the same, 1/n where one of n has everything.

    None at all, and nothing for anybody, are even: 1. Jain, Chiu and Hawe, DEC technical report 301, 1984.
    """
    shares = list(values)
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
