"""The largest rate and the highest level that hold, by few tries."""

from collections.abc import Callable

_STEP = 1.5
_RANGE = 30.0


def largest_rate(holds: Callable[[float], bool], guess: float, precision: float) -> float:
    """By steps from a guess until one holds and the next does not, then by halves of what lies between.

    0 where not even a thirtieth of the guess holds.
    """
    good, bad = 0.0, 0.0
    rate = guess
    while not (good and bad):
        if holds(rate):
            good = rate
            rate *= _STEP
        else:
            bad = rate
            rate /= _STEP
        if not guess / _RANGE <= rate <= guess * _RANGE:
            return good
    while bad / good > 1 + precision:
        middle = (bad * good) ** 0.5
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def highest_level(holds: Callable[[int], bool], guess: int, most: int) -> int:
    """By halves, the guess first; levels below one that holds are taken to hold too. 0: none does."""
    good, bad, level = 0, most + 1, guess
    while bad - good > 1:
        if holds(level):
            good = level
        else:
            bad = level
        level = (good + bad) // 2
    return good


def settled_level(holds: Callable[[int], bool], start: int, most: int) -> int:
    """One by one from where it is expected: up while the next holds, else down until one does."""
    level = max(1, start)
    if holds(level):
        while level < most and holds(level + 1):
            level += 1
        return level
    level -= 1
    while level and not holds(level):
        level -= 1
    return level
