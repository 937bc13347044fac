"""Whether a failed call is tried again, and when; without a clock, so that both clients and tests bring their own."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

from gpulet.errors import DeadlineExceeded, Overloaded, ServerError, Unreachable
from gpulet.units import MS, NEVER, SECOND, US, Duration, Instant

_FIRST: Final = 50 * MS
_LONGEST: Final = 30 * SECOND


@dataclass(frozen=True, slots=True)
class Retry:
    """At most so many more attempts. Waits double from 50 ms, each drawn from its upper half: peers must not return in step.

    Who is asked to wait longer than 30 s is told so instead.
    """

    most: int = 2
    random: Random = field(default_factory=Random)

    def backoff(self, attempt: int) -> Duration:
        """The wait behind this attempt (the first is 0) where the server names none."""
        longest = min(_LONGEST, _FIRST << attempt)
        return self.random.randint(longest // 2, longest)


class Attempts:
    """One call: how long its next attempt may take, and what follows a failure."""

    def __init__(self, retry: Retry, deadline: Instant) -> None:
        self._retry = retry
        self._deadline = deadline
        self._failed = 0

    def left(self, now: Instant) -> Duration:
        """Time to the deadline, `NEVER` where there is none; raises `DeadlineExceeded` where it has passed."""
        if self._deadline == NEVER:
            return NEVER
        if now >= self._deadline:
            raise self.late()
        return self._deadline - now

    def late(self) -> DeadlineExceeded:
        """What to raise when time ran out under way."""
        return DeadlineExceeded(0, f"no answer before the deadline (attempt {self._failed + 1})")

    def wait(self, now: Instant, today: datetime, failure: ServerError) -> Duration:
        """How long to wait before the next attempt. Raises the failure, or `DeadlineExceeded` where it cannot come in time."""
        if not isinstance(failure, Overloaded | Unreachable):
            raise failure
        asked = retry_after(failure.retry_after, today) if isinstance(failure, Overloaded) else 0
        wait = asked + self._retry.backoff(self._failed)
        if self._deadline != NEVER and now + wait >= self._deadline:
            left = max(0, self._deadline - now) // US
            msg = f"{failure.args[0]}; the next attempt may start in {wait // US} us, the deadline is in {left} us"
            raise DeadlineExceeded(failure.status, msg) from failure
        if self._failed >= self._retry.most or asked > _LONGEST:
            raise failure
        self._failed += 1
        return wait


def retry_after(value: str, today: datetime) -> Duration:
    """A Retry-After header, seconds or an HTTP date; 0 where it is neither or has passed."""
    if value.isascii() and value.isdigit():
        return int(value[:9]) * SECOND  # 30 years are enough
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0
    zoned = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0, round((zoned - today).total_seconds() * SECOND))
