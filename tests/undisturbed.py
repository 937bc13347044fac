"""Whether this machine had time for a comparison of what is live with what is simulated."""

import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

MOST_TAKEN = 0.2
"""Of a core."""


def undisturbed():
    """For comparisons of what is live from here on with what is simulated: a context for the checks.

    One that fails where others took more than a fifth of a core meanwhile says nothing, and is skipped.
    """
    return _undisturbed_since(time.monotonic(), taken_by_others())


@contextmanager
def _undisturbed_since(began, taken_before):
    try:
        yield
    except AssertionError as error:
        taken = (taken_by_others() - taken_before) / (time.monotonic() - began)
        if taken > MOST_TAKEN:
            pytest.skip(f"others took {taken:.0%} of a core: {error}")
        raise


def taken_by_others():
    """Seconds of CPU that neither this process nor its ended children had, with what the host withheld."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # idle, and waiting for a disk
    own = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy / os.sysconf("SC_CLK_TCK") - own
