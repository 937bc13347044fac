"""When a new plan is called for: at rises, lasting falls and misses by our watch, once an epoch by the artifact."""

from dataclasses import replace

import pytest

from gpulet.core.epochs import EpochRules, Epochs, Smoothed
from gpulet.core.messages import Answer, Arrived, Drop, Fail, Gather, Reason, Reject, Spawn
from gpulet.core.replan import Watch, Watching
from gpulet.model import Model
from gpulet.request import Request
from gpulet.units import MS, SECOND

SLO = 100 * MS
MODELS = {name: Model(name, SLO) for name in ("m0", "m1")}


def in_time(request):
    return (Answer(1, (request.id,)),)


class Street:
    """Even arrivals of m0 before an estimator, which looks when it wants to; `said` is what it demanded, and when."""

    def __init__(self, estimator):
        self.estimator = estimator
        self.now = 0
        self.number = 0
        self.jumps = []
        self.said = []

    def send(self, rate, seconds, *, rows=1, together=1, allowed=SLO, end=in_time):
        """`rate` requests a second, so many at a time; `end` says what becomes of each. What was demanded meanwhile."""
        gap, until, first = SECOND * together // rate, self.now + round(seconds * SECOND), len(self.said)
        while self.now + gap <= until:
            self.wait(self.now + gap)
            for _ in range(together):
                self.number += 1
                request = Request(self.number, "m0", self.now, self.now + allowed, rows)
                if self.estimator.record(self.now, (Arrived(request),), end(request)):
                    self.jumps.append(self.now)
            if self.now in {self.estimator.look_at, *self.jumps[-1:]}:
                self.look()
        return [demand for _, demand in self.said[first:]]

    def silence(self, seconds):
        first = len(self.said)
        self.wait(self.now + round(seconds * SECOND) + 1)
        return [demand for _, demand in self.said[first:]]

    def wait(self, until):
        """Whoever comes at the instant of a look comes before it."""
        while self.estimator.look_at < until:
            self.now = self.estimator.look_at
            self.look()
        self.now = until

    def look(self):
        self.said.append((self.now, self.estimator.look(self.now)))
        return self.said[-1][1]

    def agree(self, *, is_held=True):
        """A plan for what was demanded last is in force."""
        self.estimator.considered(self.now, self.said[-1][1].targets, is_held=is_held)


def watching(rate=100.0, **rules):
    return Street(Watch(MODELS, {"m0": rate}, 0, Watching(**rules)))


def calls(said):
    return [demand.why for demand in said if demand.why]


# ours -----------------------------------------------------------------------------------------------------------------


def test_what_was_planned_for_calls_for_nothing():
    street = watching()
    assert not calls(street.send(100, 20))
    assert street.look().rates["m0"] == pytest.approx(100, rel=0.02)
    assert street.look().rates["m1"] < 0.1


def test_it_looks_as_often_as_it_is_told():
    street = watching(look=SECOND // 4)
    street.send(100, 5)
    assert [at for at, _ in street.said] == [n * SECOND // 4 for n in range(1, 21)]


@pytest.mark.parametrize(("rate", "is_called"), [(105, False), (130, True)])
def test_a_rise_beyond_the_band_calls_for_a_plan(rate, is_called):
    street = watching()
    street.send(100, 10)
    said = calls(street.send(rate, 10))
    assert bool(said) is is_called
    assert all(why.startswith("m0 rose to ") and why.endswith(", planned for 100.0") for why in said)


def test_a_jump_is_looked_at_before_the_next_look_is_due():
    street = watching(look=SECOND)
    street.send(100, 10)
    said = street.send(600, 1)
    assert street.jumps[0] < 10 * SECOND + 200 * MS
    assert calls(said)[0].startswith("m0 rose to ")
    assert said[0].rates["m0"] == pytest.approx(600, rel=0.25)


def test_a_target_is_the_rate_and_what_is_not_known_of_it():
    demands = [watching(sigmas=sigmas).send(100, 1)[-1] for sigmas in (0.0, 1.0, 2.0)]
    rates, targets = [d.rates["m0"] for d in demands], [d.targets["m0"] for d in demands]
    assert targets[0] == pytest.approx(rates[0])
    assert targets[2] - rates[2] == pytest.approx(2 * (targets[1] - rates[1]))
    surer = watching(sigmas=2.0).send(100, 10)[-1]
    assert 1.5 * (surer.targets["m0"] - surer.rates["m0"]) < targets[2] - rates[2]


def test_a_trend_is_followed_as_far_ahead_as_a_change_takes():
    ahead = []
    for lead in (0, 2 * SECOND):
        street = watching(sigmas=0.0, lead=lead)
        for second in range(20):
            street.send(100 + 20 * second, 1)
        ahead.append(street.look().targets["m0"])
    assert ahead[1] - ahead[0] == pytest.approx(40, rel=0.4)  # 20/s more each second


def test_bursts_need_more_the_shorter_the_objective():
    street = watching()
    street.send(100, 20, together=20)
    bursty = street.look().targets["m0"]
    street.estimator.revise(replace(MODELS["m0"], slo=4 * SLO))
    longer = street.look().targets["m0"]
    even = watching()
    even.send(100, 20)
    assert even.look().targets["m0"] * 1.1 < longer < bursty
    street.estimator.revise(MODELS["m0"])
    assert street.look().targets["m0"] == pytest.approx(bursty)


def test_a_fall_calls_for_a_plan_once_it_has_lasted():
    street = watching(patience=3 * SECOND)
    street.send(100, 10)
    street.send(50, 8)
    first, demand = next(entry for entry in street.said if entry[1].why)
    assert 13 * SECOND <= first < 14.5 * SECOND
    assert demand.has_fallen
    assert demand.why.startswith("m0 fell to ")


def test_a_short_lull_calls_for_nothing():
    street = watching(patience=3 * SECOND)
    street.send(100, 10)
    assert not calls(street.send(50, 2) + street.send(100, 1) + street.send(50, 2) + street.send(100, 10))


def test_silence_is_a_fall():
    street = watching()
    street.send(100, 10)
    said = street.silence(5)
    assert said[-1].has_fallen
    assert said[-1].rates["m0"] < 1


def test_a_rise_is_no_fall():
    street = watching()
    street.send(100, 10)
    assert not any(demand.has_fallen for demand in street.send(200, 10))


def test_the_band_is_around_what_was_considered_last():
    street = watching()
    street.send(100, 10)
    assert calls(street.send(200, 5))
    street.agree()
    assert not calls(street.send(200, 10))
    assert calls(street.send(100, 10))


def test_a_fall_is_patient_anew_after_every_decision():
    street = watching(patience=3 * SECOND)
    street.send(100, 10)
    assert calls(street.send(50, 5))
    street.estimator.considered(street.now, {"m0": 100.0}, is_held=True)
    assert not calls(street.send(50, 2.9))
    assert calls(street.send(50, 1))


def test_a_hint_is_believed_at_once_and_given_up_when_it_does_not_come_true():
    street = watching()
    street.send(100, 10)
    street.estimator.hint(street.now, "m0", 500.0)
    told = street.look()
    assert told.rates["m0"] == pytest.approx(500)
    assert told.why == f"m0 rose to 500.0/s, target {told.targets['m0']:.1f}, planned for 100.0"
    street.send(100, 5)
    assert street.look().rates["m0"] == pytest.approx(100, rel=0.1)


def test_rows_count_rather_than_requests():
    street = watching()
    street.send(50, 10, rows=4)
    assert street.look().rates["m0"] == pytest.approx(200, rel=0.1)


def test_a_request_for_a_stage_counts_as_one_that_came():
    watch = Watch(MODELS, {"m1": 100.0})
    for n in range(1, 1001):
        now = n * 10 * MS
        watch.record(now, (), (Spawn(Request(n, "m1", now, now + SLO), 1, "stage"),))
        if now >= watch.look_at:
            demand = watch.look(now)
    assert demand.rates["m1"] == pytest.approx(100, rel=0.02)


def test_a_model_that_is_not_watched_is_nothing():
    watch = Watch(MODELS, {})
    many = tuple(Arrived(Request(n, "nobody", SECOND, 2 * SECOND)) for n in range(1, 1000))
    assert not watch.record(SECOND, many, [Reject(n, Reason.UNKNOWN_MODEL) for n in range(1, 1000)])
    assert set(watch.look(SECOND).rates) == {"m0", "m1"}


# ours: who misses objectives ------------------------------------------------------------------------------------------


def one_in(count, end):
    """Every so-manieth request ends like that, the others in time."""
    return lambda request: end(request) if request.id % count == 0 else in_time(request)


REJECTED = one_in(10, lambda request: (Reject(request.id, Reason.QUEUE_FULL),))


def strained(street, seconds, end):
    return [why for why in calls(street.send(100, seconds, end=end)) if "misses its objective" in why]


def calm(**rules):
    """A plan for what comes has been in force for long enough."""
    street = watching(**rules)
    street.send(100, 10)
    street.agree()
    return street


@pytest.mark.parametrize(
    "end",
    [
        lambda request: (Reject(request.id, Reason.QUEUE_FULL),),
        lambda request: (Drop(request.id, Reason.EXPIRED),),
        lambda request: (Fail(request.id, Reason.RUN_FAILED),),
    ],
)
def test_a_model_that_misses_objectives_within_its_plan_calls_for_more(end):
    street = calm()
    before = street.said[-1][1].targets["m0"]
    said = street.send(100, 7, end=one_in(10, end))
    first = next(demand for demand in said if demand.why)
    assert first.why == "m0 misses its objective of 100 ms at 100.0/s"
    assert first.targets["m0"] == pytest.approx(1.25 * before, rel=0.02)


@pytest.mark.parametrize("answer", [in_time, lambda request: (Gather(request.id, (1,)),)])
def test_answers_that_come_late_are_misses(answer):
    street = calm()
    assert not [why for why in calls(street.send(100, 7, end=answer)) if "misses" in why]
    assert [why for why in calls(street.send(100, 7, allowed=-1, end=answer)) if "misses" in why]


@pytest.mark.parametrize(
    "end",
    [
        one_in(125, lambda request: (Reject(request.id, Reason.QUEUE_FULL),)),  # 0.8 %
        one_in(2, lambda request: (Drop(request.id, Reason.CANCELLED),)),
        one_in(50, lambda request: ()),  # they run yet
    ],
)
def test_what_is_no_miss_or_seldom_one_calls_for_nothing(end):
    assert not strained(calm(), 10, end)


def test_a_rate_that_somebody_knew_of_is_planned_for_a_minute_whether_it_comes_or_not():
    street = watching()
    street.estimator.hint(street.now, "m1", 50.0)
    street.silence(59)
    demand = street.look()
    assert demand.targets["m1"] == 50
    assert demand.rates["m1"] < 1
    street.silence(2)
    assert street.look().targets["m1"] < 1


@pytest.mark.parametrize("estimator", [Watch, Epochs])
def test_a_new_model_is_watched_from_then_on(estimator):
    watch = estimator({"m0": MODELS["m0"]}, {"m0": 10.0})
    watch.enlist(SECOND, MODELS["m1"])
    watch.hint(SECOND, "m1", 50.0)
    demand = watch.look(SECOND + 10 * MS)
    assert demand.rates["m1"] == pytest.approx(50, rel=0.1)
    assert demand.targets["m1"] >= demand.rates["m1"]


def test_a_few_misses_call_for_a_plan_when_they_last():
    street, two_percent = calm(), one_in(50, lambda request: (Reject(request.id, Reason.QUEUE_FULL),))
    assert not strained(street, 5, two_percent)
    assert strained(street, 5, two_percent)


def test_more_that_wait_than_come_within_an_objective_call_for_a_plan():
    assert strained(calm(), 10, one_in(2, lambda request: ()))


def test_one_bad_window_calls_for_nothing():
    street = calm()
    whys = []
    for _ in range(4):
        whys += strained(street, 1.9, REJECTED)
        whys += strained(street, 8, in_time)
    assert not whys


def test_a_handful_of_requests_proves_nothing():
    street = watching(5.0)
    street.send(5, 10)
    street.agree()
    said = street.send(5, 10, end=lambda request: (Drop(request.id, Reason.EXPIRED),))
    assert not [why for why in calls(said) if "misses" in why]


def test_who_is_not_held_by_the_plan_in_force_is_not_strained():
    street = calm()
    street.agree(is_held=False)
    assert not strained(street, 10, REJECTED)
    street.agree(is_held=True)
    assert strained(street, 7, REJECTED)


def test_who_misses_objectives_at_a_bit_more_than_was_planned_gets_a_plan_for_what_comes():
    street = calm(rise=0.3)
    street.send(115, 10)
    first = next(demand for demand in street.send(115, 7, end=REJECTED) if demand.why)
    assert first.why.startswith("m0 misses its objective of 100 ms at 11")
    assert first.targets["m0"] < 125


def test_who_asks_for_more_than_was_planned_is_not_strained():
    street = calm()
    said = street.send(200, 10, end=REJECTED)
    assert not [why for why in calls(said) if "misses" in why]


def test_a_target_grows_no_further_than_the_most_strain():
    street = calm()
    relaxed = street.look().targets["m0"]
    for _ in range(8):
        strained(street, 5, REJECTED)
        street.agree()
    assert street.look().targets["m0"] == pytest.approx(2 * relaxed, rel=0.03)


def test_a_target_shrinks_again_while_all_is_well():
    street = calm()
    relaxed = street.look().targets["m0"]
    strained(street, 5, REJECTED)
    street.agree()
    before = street.look().targets["m0"]
    street.send(100, 60)
    after = street.look().targets["m0"]
    assert relaxed * 1.1 < after < before * 0.97


# the artifact's -------------------------------------------------------------------------------------------------------


def smoothed(rate, planned=None):
    return Smoothed(rates={"m0": rate}, planned={} if planned is None else {"m0": planned})


def test_the_estimate_moves_by_two_in_forty_one():
    assert EpochRules().alpha == 2 / 41
    estimate = Smoothed()
    estimate.read("m0", 50)
    assert estimate.rates == {"m0": 100}, "the first reading of half a second is the estimate"
    estimate.read("m0", 91)
    assert estimate.rates["m0"] == pytest.approx(100 + (182 - 100) * 2 / 41)
    estimate.read("m1", 0)
    assert estimate.rates["m1"] == 0


@pytest.mark.parametrize(
    ("rate", "target"),
    [(1000.0, 1200.0), (125.0, 150.0), (124.0, 186.0), (10.0, 15.0), (1.0, 1.5), (0.99, 0.0), (0.0, 0.0)],
)
def test_targets_have_headroom_more_of_it_below_125_a_second_and_models_below_1_are_dropped(rate, target):
    assert smoothed(rate).targets() == {"m0": pytest.approx(target)}


@pytest.mark.parametrize(
    ("planned", "target", "verdict"),
    [
        (160.0, 167.9, ""),
        (160.0, 168.1, "rose"),  # 5 %
        (600.0, 609.9, ""),
        (600.0, 610.1, "rose"),  # 10/s
        (160.0, 144.1, ""),  # less than 1.5 x 125: 1.5 x 96
        (160.0, 143.9, "fell"),
        (600.0, 540.1, ""),
        (600.0, 539.9, "fell"),
        (0.0, 1.6, "rose"),
    ],
)
def test_a_target_has_moved_by_5_percent_or_10_a_second_up_or_10_percent_down(planned, target, verdict):
    rate = target / 1.2 if target >= 150 else target / 1.5
    moved = smoothed(rate, planned).moved()
    assert moved == (verdict and f"m0: target {verdict} to {target:.1f}/s, planned for {planned:.1f}")


def test_a_model_that_is_dropped_has_fallen():
    assert smoothed(0.9, 2.0).moved() == "m0: target fell to 0.0/s, planned for 2.0"
    assert not smoothed(0.9, 0.0).moved()
    assert not smoothed(0.9).moved()


def epochs(demand=100.0, planned=None):
    street = Street(Epochs(MODELS, {"m0": demand}))
    if planned:
        street.estimator.considered(0, {"m0": planned}, is_held=True)
    return street


def decisions(street):
    return [at / SECOND for at, demand in street.said if demand.why]


def test_counters_are_read_twice_a_second():
    street = epochs()
    street.send(100, 3)
    assert [at for at, _ in street.said] == [n * SECOND // 2 for n in range(1, 7)]


def test_whatever_happens_it_decides_at_the_end_of_an_epoch():
    street = epochs()
    street.send(100, 1)
    street.send(2000, 60)
    assert not street.jumps
    assert decisions(street) == [20, 40, 60]


def test_a_rate_that_stays_calls_for_nothing_once_its_target_is_planned_for():
    street = epochs(planned=150.0)
    street.send(100, 61)
    assert decisions(street) == []
    assert street.said[-1][1].targets["m0"] == pytest.approx(150, rel=0.01)


def test_targets_that_were_considered_are_compared_with_whether_they_are_held_or_not():
    street = epochs(20.0)
    street.send(200, 21)
    street.agree(is_held=False)
    street.send(200, 200)
    street.agree(is_held=False)
    first = len(street.said)
    street.send(200, 61)
    assert not calls([demand for _, demand in street.said[first:]])


def test_an_ewma_follows_over_an_epoch():
    street = epochs(100.0)
    street.send(1000, 20)
    kept = (1 - 2 / 41) ** 40
    assert street.said[-1][1].rates["m0"] == pytest.approx(1000 - 900 * kept, rel=0.01)


def test_readings_are_of_rows_and_of_stages_too_and_of_no_other_models():
    estimator = Epochs(MODELS, {"m0": 0.0, "m1": 0.0})
    events = [Arrived(Request(1, "m0", 0, SLO, 5)), Arrived(Request(2, "nobody", 0, SLO))]
    spawned = [Spawn(Request(3, "m1", 0, SLO, 2), 1, "stage")]
    assert estimator.record(0, events, spawned) is False
    rates = estimator.look(SECOND // 2).rates
    assert rates == {"m0": pytest.approx(10 * 2 / 41), "m1": pytest.approx(4 * 2 / 41)}
    assert estimator.look(SECOND).rates["m0"] < rates["m0"], "a counter is read once"


def test_a_hint_is_taken_for_the_estimate_and_decided_on_when_the_epoch_ends():
    street = epochs(planned=150.0)
    street.send(100, 19)
    street.estimator.hint(street.now, "m0", 800.0)
    street.send(100, 2)
    assert decisions(street) == [20]
    assert street.said[-1][1].rates["m0"] > 600


def test_an_objective_is_nothing_to_an_epoch():
    street = epochs(planned=150.0)
    street.estimator.revise(replace(MODELS["m0"], slo=MS))
    street.send(100, 21)
    assert decisions(street) == []
