"""Rates as they are estimated: jumps are found soon and not invented, ramps are followed, bursts are known for what they are."""

from random import Random
from statistics import median

import pytest

from gpulet.core.rates import Rate
from gpulet.units import MS, SECOND

LOOK_S = 0.1


class Seen:
    """A rate that is shown arrivals, and what it said at each look: (seconds, mean, slope)."""

    def __init__(self, rate, seed, cv=1.0, sure_s=1.0):
        self.rate = Rate(0, rate, sure_s)
        self.random = Random(seed)
        self.cv = cv
        self.now = 0.0
        self.next_look = LOOK_S
        self.said = []
        self.jumps = 0

    def show(self, rate_at, until):
        while True:
            rate = rate_at(self.now)
            shape = 1 / self.cv**2
            self.now += self.random.gammavariate(shape, 1 / (rate * shape))
            while self.next_look < min(self.now, until):
                self.look(self.next_look)
                self.next_look += LOOK_S
            if self.now >= until:
                self.now = until
                return
            if self.rate.arrive(round(self.now * SECOND), 1):
                self.jumps += 1
                self.look(self.now)

    def look(self, at):
        self.rate.look(round(at * SECOND))
        self.said.append((at, self.rate.mean, self.rate.slope))

    def within(self, part, rate, since):
        """Seconds from `since` until the mean first was that near."""
        return next((at - since for at, mean, _ in self.said if at > since and abs(mean - rate) < part * rate), 99.0)


@pytest.mark.parametrize(
    ("before", "after", "most_s"), [(100, 400, 0.2), (400, 100, 0.5), (100, 200, 0.8), (1000, 4000, 0.05)]
)
def test_a_jump_is_found_within(before, after, most_s):
    delays = []
    for seed in range(15):
        seen = Seen(before, seed)
        seen.show(lambda _: before, 5.0)
        seen.show(lambda _: after, 8.0)
        delays.append(seen.within(0.35, after, 5.0))
    assert median(delays) < most_s


@pytest.mark.parametrize(("rate", "cv"), [(20, 1.0), (300, 1.0), (2000, 1.0), (100, 0.3)])
def test_no_jump_is_invented(rate, cv):
    for seed in range(5):
        seen = Seen(rate, seed, cv)
        seen.show(lambda _: rate, 20.0)
        assert seen.jumps == 0
        late = [mean for at, mean, _ in seen.said if at > 10]
        assert all(abs(mean - rate) < max(0.2 * rate, 10) for mean in late)


def test_bursts_are_known_for_what_they_are():
    seen = Seen(100, 3, cv=3.0, sure_s=10.0)
    seen.show(lambda _: 100, 60.0)
    assert 4 < seen.rate.dispersion < 14  # cv squared is 9
    assert Seen(100, 1).rate.dispersion == 1
    calm = Seen(100, 3)
    calm.show(lambda _: 100, 60.0)
    assert calm.rate.dispersion < 1.3


def test_a_ramp_is_followed_without_lag_and_foreseen():
    seen = Seen(100, 2)
    seen.show(lambda at: 100 + 20 * at, 20.0)
    assert seen.rate.mean == pytest.approx(500, rel=0.08)
    assert seen.rate.slope == pytest.approx(20, rel=0.4)
    assert seen.rate.ahead(2 * SECOND) == pytest.approx(540, rel=0.08)


def test_silence_is_a_fall():
    seen = Seen(50, 1)
    seen.show(lambda _: 50, 5.0)
    for tick in range(50, 80):
        seen.rate.look(tick * SECOND // 10)
    assert seen.rate.mean < 1


def test_what_was_never_asked_for_is_noticed_at_its_first_requests():
    rate = Rate(0, 0.0)
    rate.look(SECOND)
    for n in range(1, 31):
        rate.arrive(SECOND + n * SECOND // 100, 1)
    rate.look(SECOND * 4 // 3)
    assert rate.mean > 50


def test_rows_count_and_a_first_look_at_the_same_instant_changes_nothing():
    rate = Rate(0, 10.0, 1.0)
    rate.look(0)
    assert rate.mean == 10
    for tick in range(1, 101):
        rate.arrive(tick * SECOND // 10, 4)
        rate.look(tick * SECOND // 10)
    assert rate.mean == pytest.approx(40, rel=0.1)


@pytest.mark.parametrize("stall", [20 * MS, 50 * MS, 100 * MS])
def test_what_a_loop_that_stood_still_hands_over_at_once_is_no_jump(stall):
    rate, begins = Rate(0, 1000.0, 1.0), 2 * SECOND
    for due in range(MS, 4 * SECOND, MS):
        at = begins + stall if begins <= due < begins + stall else due
        assert not rate.arrive(at, 1), at
        if due % (100 * MS) == 0 and due != begins:
            rate.look(at)
    assert rate.mean == pytest.approx(1000, rel=0.02)
