"""What the reproduction of D-STACK is made of: cases, arrivals, measures, the ideal of kernels, random mixes, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gpulet.core.fairness import jain
from gpulet.core.ports import Infeasible
from gpulet.errors import BadInput
from gpulet.plan import Plan
from gpulet.planners.everywhere import everywhere
from gpulet.planners.scaled import scaled, shares
from gpulet.planners.temporal import round_robin
from gpulet.reproduce.tcc24 import against as comparison
from gpulet.reproduce.tcc24.arrivals import Kind, Process, Source, uniform
from gpulet.reproduce.tcc24.cases import Case, find_mix, find_models, row
from gpulet.reproduce.tcc24.comparing import FEWEST, MOST, Stream, capacity, compare, loaded, random_mix
from gpulet.reproduce.tcc24.data import KIND, LINK, MEASURED_BATCHES, TABLE, mix, mixed, profile, published
from gpulet.reproduce.tcc24.ideal import Kernels, area, bound, ideal, kernels
from gpulet.reproduce.tcc24.jobs import Asked, Row, everything, reproduce
from gpulet.reproduce.tcc24.measures import Count, misses, switches, utilisations
from gpulet.reproduce.tcc24.report import write_report
from gpulet.reproduce.tcc24.runs import Ran
from gpulet.units import MS, SECOND


@pytest.mark.slow
def test_random_mixes_ask_for_one_gpu_at_the_knees():
    counts = set()
    for seed in range(20):
        problem = random_mix(seed)
        counts.add(len(problem.models))
        rows = {name: TABLE[name] for name in problem.models}
        area = sum(problem.demand[n] / r.batch * r.runtime_ms * MS / SECOND * r.knee_pct / 100 for n, r in rows.items())
        assert area == pytest.approx(1)
    assert counts <= {*range(FEWEST, MOST + 1)}
    assert len(counts) > 3
    assert random_mix(7).demand == random_mix(7).demand


def test_smaller_batches_have_their_knee_in_proportion():
    every = profile(["mobilenet"], MEASURED_BATCHES)
    assert every.latency("mobilenet", 20, 16) == 10 * MS
    assert every.latency("mobilenet", 10, 8) == 10 * MS
    assert every.latency("mobilenet", 20, 8) == pytest.approx(10 * MS * 5 / 6)
    assert profile(["mobilenet"]).latency("mobilenet", 20, 8) == 10 * MS


def test_systems_are_compared_on_the_same_arrivals_and_a_refusal_is_a_reason():
    problem = random_mix(4)
    stream = Stream(seconds=2.0, load=0.2)
    found = compare(problem, ["dstack", "max-min", "segments"], stream)
    assert list(found) == ["dstack", "max-min", "segments"]
    assert found["dstack"].goodput > 0
    assert found["dstack"].attainment.keys() == problem.models.keys()
    assert "MIG" in found["segments"].refusal
    assert found["segments"].starved == tuple(problem.models)
    assert found == compare(problem, ["dstack", "max-min", "segments"], stream)


def test_capacity_is_the_load_at_which_every_model_still_attains():
    problem, stream = mix("convnets"), Stream(seconds=2.0, load=2.0)
    load = capacity(problem, "gslice-static", stream)
    assert 0 < load < 2
    assert (
        min(compare(problem, ["gslice-static"], replace(stream, load=load))["gslice-static"].attainment.values())
        >= 0.99
    )
    assert capacity(problem, "segments", stream) == 0


@pytest.mark.slow
def test_ours_is_compared_with_whoever_comes_close_for_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "LOADS", (0.6,))
    monkeypatch.setattr(comparison, "SECONDS", 2.0)
    monkeypatch.setattr(comparison, "_SCREENING", 1.0)
    monkeypatch.setattr(comparison, "_SEARCH", Stream(0.5, load=1.0))
    rivals = ("gpulet", "segments", "nexus")

    def compared():
        return comparison.against(["C-2"], rivals, 1, tmp_path, lambda done, of: None)

    (value,) = compared()
    (load,) = value["loads"]
    found = load["rivals"]
    assert value["models"] == ["resnet50", "vgg19"]
    assert load["least_attained"] > 0.9
    assert found["gpulet"]["seconds"] == 2
    assert found["gpulet"]["ratio"] == 1
    assert found["nexus"]["seconds"] == 1
    assert found["nexus"]["ratio"] > 1 / 0.9
    assert found["segments"]["ratio"] is None
    assert compared() == [value]
    page = write_report([], tmp_path, [value]).read_text()
    assert "| C-2, 2 models | " in page
    assert "gpulet 1, nexus" in page


# cases and arrivals -------------------------------------------------------------------------------------------------


def test_mixes_are_found_by_any_spelling():
    assert find_mix("C-3") == find_mix("c3") == find_mix("c-3") == ("alexnet", "resnet50", "vgg19")
    assert find_models("BERT,VGG-19") == ("bert", "vgg19")
    for wrong in ("c9", ""):
        with pytest.raises(BadInput):
            find_mix(wrong)
    for wrong in ("bert,bert", "gpt"):
        with pytest.raises(BadInput):
            find_models(wrong)


def test_the_links_rate_is_split_evenly_or_by_runtime():
    problem = mix("C-4")
    assert Source(Kind.LINK).asked(problem).demand == dict.fromkeys(problem.models, 480)
    rates = Source(Kind.INVERSE).rates(problem)
    assert sum(rates.values()) == pytest.approx(LINK)
    assert rates["alexnet"] / rates["vgg19"] == pytest.approx(55 / 8)


def test_every_model_is_off_for_one_step():
    problem, steps = mix("C-3"), 4
    arrived = list(Source(Kind.STEPS, Process.POISSON).requests(problem, steps * SECOND, never_due=True))
    seen = {(request.arrival // SECOND, request.model) for request in arrived}
    off = {(place + 1, name) for place, name in enumerate(problem.models)}
    assert seen == {(step, name) for step in range(steps) for name in problem.models} - off


def test_uniform_arrivals_are_evenly_spaced():
    times = uniform(np.random.default_rng(1), 100.0, SECOND)
    assert len(times) == 100
    assert set(np.diff(times)) <= {10 * MS - 1, 10 * MS, 10 * MS + 1}


# measures -------------------------------------------------------------------------------------------------------------


def test_jains_index_is_one_where_all_are_equal():
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([5, 0]) == pytest.approx(0.5)
    assert jain([80, 64, 56, 55]) == pytest.approx(0.976, abs=5e-4)


def count(names, windows=1):
    return Count(mixed(names), {n: p.size.sms for n, p in published(names).items()}, windows)


def test_a_window_is_missed_unless_a_run_begins_and_ends_in_it():
    ran = [Ran("alexnet", 0, 30, 16, start * MS, (start + 8) * MS) for start in (0, 20, 60, 80)]
    assert count(("alexnet", "vgg19")).end == 100 * MS
    assert misses(ran, count(("alexnet", "vgg19"))) == 2


def test_what_is_beyond_the_knee_or_beyond_the_gpu_is_of_no_use():
    names = ("mobilenet", "vgg19")
    alone = Ran("mobilenet", 0, 100, 16, 0, 50 * MS)
    assert utilisations([alone], count(names)) == pytest.approx((0.5, 0.5 * 0.2))
    beside = Ran("vgg19", 0, 100, 16, 0, 50 * MS)
    assert utilisations([alone, beside], count(names)) == pytest.approx((0.5, 0.5 * 0.7))
    after = Ran("vgg19", 0, 100, 16, 50 * MS, 200 * MS)
    assert utilisations([alone, after], count(names)) == pytest.approx((1, 0.5 * 0.2 + 0.5 * 0.5))


def test_a_switch_is_another_share_for_a_models_next_run():
    sizes = [("mobilenet", 20), ("vgg19", 50), ("mobilenet", 10), ("vgg19", 50), ("mobilenet", 20)]
    ran = [Ran(name, 0, size, 16, n * MS, (n + 1) * MS) for n, (name, size) in enumerate(sizes)]
    assert switches(ran, count(("mobilenet", "vgg19"))) == 2


# the ideal of kernels -------------------------------------------------------------------------------------------------


def test_kernels_are_as_long_as_their_model_and_as_wide_on_average():
    point = published()["resnet50"]
    parts = kernels(point, KIND.sms)
    assert len(parts) == 50
    assert sum(kernel.length for kernel in parts) == pytest.approx(point.latency, rel=1e-6)
    assert area(point, KIND.sms) / point.latency / point.size.sms == pytest.approx(1.02, abs=0.001)
    kept = area(point, KIND.sms, Kernels.AS_WORK) / area(point, KIND.sms)
    assert kept == pytest.approx(5 / 6, abs=0.01)


def test_kernels_wider_than_the_gpu_take_all_of_it_for_longer():
    parts = kernels(published()["convnet3"], KIND.sms)
    assert parts[0].size == KIND.sms
    assert parts[0].length > parts[-1].length


def test_no_scheduler_of_kernels_exceeds_the_bound():
    points = published(("alexnet", "vgg19"))
    found = ideal(points, {"alexnet": 25 * MS, "vgg19": 100 * MS}, KIND.sms, SECOND)
    assert 0 < sum(found.area.values()) <= KIND.sms * SECOND
    assert bound(points, found.runs, KIND.sms) >= 1
    assert bound(points, {"alexnet": 125.0}, KIND.sms) == pytest.approx(1, rel=1e-6)


# planners -------------------------------------------------------------------------------------------------------------


def test_scaled_shares_fill_the_gpu_by_largest_remainder():
    assert shares({"a": 20, "b": 30, "c": 40, "d": 50}, 100) == {"a": 14, "b": 21, "c": 29, "d": 36}
    assert shares({"a": 20, "b": 30}, 100) == {"a": 20, "b": 30}


def test_static_shares_refuse_an_objective_they_are_too_small_for():
    points = published()
    outcome = scaled(mix("C-3"), points=points)
    assert isinstance(outcome, Infeasible)
    assert "runs no row twice" in outcome.constraint
    assert [gpulet.size.sms for gpulet in outcome.partial.gpulets] == [25, 33, 42]
    assert isinstance(scaled(mix("convnets"), points=points), Plan)


def test_everything_everywhere_is_refused_beyond_all_sms():
    light = mixed(("alexnet", "bert"))
    assert isinstance(everywhere(light, points=published()), Plan)
    assert isinstance(everywhere(loaded(light, 4.0), points=published()), Infeasible)  # Alexnet alone: 2000/s
    names = ("mobilenet", "alexnet", "bert", "resnet18", "inception", "resnext50")
    outcome = everywhere(loaded(mixed(names), 1.3), points=published())
    assert isinstance(outcome, Infeasible)
    assert "would take" in outcome.constraint
    assert [resident.model for resident in outcome.partial.residents] == list(names)


def test_round_robin_promises_a_cycle_and_a_run():
    problem = loaded(mix("convnets"), 0.5)
    plan = round_robin(problem)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    (gpulet,) = plan.gpulets
    assert plan.promises["convnet3"].worst_latency == gpulet.duty_cycle + gpulet.turns[2].latency
    assert isinstance(round_robin(mix("C-4")), Infeasible)


# reports --------------------------------------------------------------------------------------------------------------


def test_a_system_that_cannot_plan_here_is_reported_with_its_reason():
    value = row(Case(find_mix("c7"), windows=2), "segments")
    assert "MIG" in value["refusal"]
    assert value["total_per_s"] == 0
    assert value["misses_per_window"] == 18
    arriving = row(Case(find_mix("c7"), Source(Kind.LINK), windows=10), "segments")
    assert arriving["violations_per_s"] == pytest.approx(LINK, rel=0.01)


def test_arrivals_give_goodput_violations_and_attainment():
    value = row(Case(find_mix("c3"), Source(Kind.INVERSE, Process.POISSON), 10), "dstack")
    assert 0 < value["goodput_per_s"] < LINK
    assert 0 < value["attainment"] < 1
    assert value["attained"].keys() == {"alexnet", "resnet50", "vgg19"}
    assert value["goodput_per_s"] / (value["goodput_per_s"] + value["violations_per_s"]) == pytest.approx(
        value["attainment"]
    )


def test_everything_covers_mixes_arrivals_and_clusters():
    rows = everything(["dstack", "ideal-kernels"], 5)
    cases = [r.case for r in rows]
    assert [c.mix for c in cases[:5]] == ["C-2", "C-3", "C-4", "C-7", "convnets"]
    assert {c.source.kind for c in cases} == set(Kind)
    assert [c.gpus for c in cases[-2:]] == [4, 4]


def test_a_report_has_its_tables_and_pictures_and_points_are_kept(tmp_path):
    asked = Asked((Row(Case(find_mix("c3"), windows=10), ("temporal", "dstack")),), 1, tmp_path)
    told = []
    values = reproduce(asked, lambda done, of: told.append((done, of)))
    again = reproduce(asked, lambda done, of: told.append((done, of)))
    assert values == again
    assert told == [(1, 2), (2, 2)]
    text = write_report(values, tmp_path).read_text()
    assert "| C-3, dstack | 1760 / 1760 | 69.1 / 69.1 |" in text
    for name in ("timeline-c3", "throughput", "fairness", "utilisation"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_the_command_prints_the_machine_interface(gpulet):
    asked = ["reproduce", "tcc24", "--mix", "C3", "--systems", "dstack,ideal-kernels", "--windows", 3, "--workers", 1]
    code, out, _ = gpulet(*asked, "--json")
    assert code == 0
    systems = json.loads(out)["systems"]
    keys = {
        "total_per_s",
        "models",
        "planned_utilisation",
        "useful_utilisation",
        "misses_per_window",
        "windows",
        "jain",
    }
    more = {"jain_area", "least_runtime_over_mean", "least_area_over_mean", "refusal"}
    for found in systems.values():
        assert keys | more <= found.keys()
        assert "timeline" not in found
    assert systems["dstack"]["windows"] == 3
    assert systems["dstack"]["models"] == pytest.approx({"alexnet": 1280, "resnet50": 320, "vgg19": 160})
    assert systems["ideal-kernels"]["planned_utilisation"] is None


@pytest.mark.parametrize(
    "wrong",
    [("--mix", "c9"), ("--models", "gpt"), ("--mix", "c3", "--models", "bert"), ("--mix", "c3", "--systems", "nobody")],
)
def test_what_is_misspelt_is_refused_before_any_work(gpulet, wrong):
    code, _, err = gpulet("reproduce", "tcc24", *wrong, "--json")
    assert code == 2
    assert "error:" in err


def test_scaled_shares_never_exceed_the_device():
    found = shares({"a": 8, "b": 8, "c": 8, "d": 1, "e": 1, "f": 1, "g": 1}, 8)
    assert sum(found.values()) == 8
    assert min(found.values()) == 1
