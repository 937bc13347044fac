"""A case: models on GPUs under some arrivals; and what a system makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits
from gpulet.errors import BadInput
from gpulet.plan import Plan
from gpulet.reproduce.tcc24.arrivals import Kind, Source
from gpulet.reproduce.tcc24.data import KIND, MIXES, ROWS, mixed, published
from gpulet.reproduce.tcc24.ideal import area, bound, ideal
from gpulet.reproduce.tcc24.measures import Count, fair, measured, planned_utilisation
from gpulet.reproduce.tcc24.published import system_at_knees
from gpulet.reproduce.tcc24.runs import Ran, Served, planned, serve
from gpulet.systems import System
from gpulet.units import NEVER, SECOND, to_ms

WINDOWS = 100
IDEAL, GREEDY_IDEAL = "ideal-kernels", "ideal-kernels-greedy"
IDEALS = (IDEAL, GREEDY_IDEAL)
_UNBOUNDED = 10**9
_DRAWN_FROM = 2
"""Sessions that a timeline leaves out, until queues and scoreboards have settled."""
_DRAWN = 2
_NEVER_DUE = frozenset({"dstack"})
"""Systems that drop what is late and yet are driven by requests that never are, as specified."""


@dataclass(frozen=True, slots=True)
class Case:
    """`models` on `gpus` GPUs, counted over `windows` sessions from the start."""

    models: tuple[str, ...]
    source: Source = field(default_factory=Source)
    windows: int = WINDOWS
    gpus: int = 1

    @property
    def mix(self) -> str:
        """The mix of these models, or their names."""
        return next((name for name, models in MIXES.items() if set(models) == set(self.models)), ",".join(self.models))

    @property
    def load(self) -> float:
        """What planners are asked for, in full batches at the knees, as a part of all GPUs."""
        demand = self.source.asked(mixed(self.models, gpus=self.gpus)).demand
        points = published(self.models)
        areas = (p.size.sms * p.latency / p.batch * demand[name] / SECOND for name, p in points.items())
        return sum(areas) / (KIND.sms * self.gpus)


def find_mix(text: str) -> tuple[str, ...]:
    """The models of a mix, `c3` or `C-3`; raises `BadInput`."""
    wanted = text.lower().replace("-", "")
    found = next((models for name, models in MIXES.items() if name.lower().replace("-", "") == wanted), None)
    if found is None:
        msg = f"--mix {text!r}: known are {', '.join(MIXES)}"
        raise BadInput(msg)
    return found


def find_models(text: str) -> tuple[str, ...]:
    """Models of the table, separated by commas, each once; raises `BadInput`."""
    names = tuple(text.lower().replace("-", "").split(","))
    unknown = [name for name in names if name not in ROWS]
    if unknown or len(set(names)) < len(names):
        msg = f"--models {text!r}: give some of {', '.join(ROWS)}, each once"
        raise BadInput(msg)
    return names


def row(case: Case, name: str) -> dict[str, Any]:
    """The JSON value of one system; `timeline` holds runs of two sessions as [model, device, SMs, from, to] in ms."""
    problem = case.source.asked(mixed(case.models, gpus=case.gpus))
    points = published(case.models)
    count = Count(problem, {model: point.size.sms for model, point in points.items()}, case.windows)
    if name in IDEALS:
        return _ideal(case, name, count)
    system = system_at_knees(name)
    found = planned(system, problem)
    is_able = bool(found.plan.devices)
    served = _served(case, name, system, found.plan, count) if is_able else Served([], Metrics([], found.plan))
    value: dict[str, Any] = dict(measured(served.ran, count, planned_utilisation(system, found.plan)))
    value |= {"refusal": found.refusal, "timeline": _timeline(served.ran, count)}
    if case.source.kind is Kind.SATURATED:
        return value
    return value | (_attained(served, count) if is_able else _unanswered(case, count))


def _served(case: Case, name: str, system: System, plan: Plan, count: Count) -> Served:
    never_due = not system.drops_early or name in _NEVER_DUE
    requests = case.source.requests(count.problem, count.end, never_due=never_due)
    is_saturated = case.source.kind is Kind.SATURATED
    limits = Limits(_UNBOUNDED, early_drop=system.drops_early and not (is_saturated and never_due))
    until = count.end + 2 * count.session if is_saturated else NEVER - 1
    return serve(system, count.problem, plan, requests, limits, until)


def _ideal(case: Case, name: str, count: Count) -> dict[str, Any]:
    """By calculation, with queues that are never empty: the kernels' greedy scheduler, or the bound in D-STACK's mix."""
    points = published(case.models)
    seconds = count.end / SECOND
    if name == GREEDY_IDEAL:
        slos = {model.name: model.slo for model in count.problem.models.values()}
        runs = dict(ideal(points, slos, KIND.sms, count.end).runs)
    else:
        theirs = row(replace(case, source=Source()), "dstack")["models"]
        mix = {model: rate / points[model].batch / case.gpus for model, rate in theirs.items()}
        factor = bound(points, mix, KIND.sms)
        runs = {model: rate * factor * seconds for model, rate in mix.items()}
    rows = {model: case.gpus * points[model].batch * found for model, found in runs.items()}
    runtime = {model: case.gpus * points[model].latency * found for model, found in runs.items()}
    used = sum(found * area(points[model], KIND.sms) for model, found in runs.items()) / (KIND.sms * count.end)
    value: dict[str, Any] = dict(fair(rows, runtime, runtime, count))
    return value | {"allocated_utilisation": used, "useful_utilisation": used, "refusal": "", "timeline": []}


def _unanswered(case: Case, count: Count) -> dict[str, Any]:
    """Nobody serves what comes."""
    arrived = sum(1 for _ in case.source.requests(count.problem, count.end, never_due=True))
    nothing = dict.fromkeys(count.problem.models, 0.0)
    return {
        "goodput_per_s": 0.0,
        "violations_per_s": arrived * SECOND / count.end,
        "attainment": 0.0,
        "attained": nothing,
    }


def _attained(served: Served, count: Count) -> dict[str, Any]:
    """Of arrivals with deadlines: answers in time, and requests without one, per second; shares in time."""
    report = served.metrics.report(count.end)
    total = report["total"]
    return {
        "goodput_per_s": total["goodput"],
        "violations_per_s": total["arrived"] * SECOND / count.end - total["goodput"],
        "attainment": total["attainment"],
        "attained": {name: report["models"][name]["attainment"] for name in count.problem.models},
    }


def _timeline(ran: Sequence[Ran], count: Count) -> list[list[Any]]:
    start, end = _DRAWN_FROM * count.session, (_DRAWN_FROM + _DRAWN) * count.session
    shown = [run for run in ran if run.start < end and run.end > start]
    return [[run.model, run.device, run.size, to_ms(run.start - start), to_ms(run.end - start)] for run in shown]
