"""Plans as JSON: what `gpulet plan --json` prints and `--plan FILE` reads back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Mechanism, Size
from gpulet.errors import PlanError
from gpulet.plan import Gpulet, Plan, Promise, Resident, Timeline, Turn
from gpulet.units import Duration, from_ms, to_ms


class AssignmentDoc(msgspec.Struct, forbid_unknown_fields=True):
    """One model's turn; times in ms."""

    model: str
    batch: int
    rate: float
    latency_ms: float


class GpuletDoc(msgspec.Struct, forbid_unknown_fields=True):
    """One gpulet; sizes in SMs or cores."""

    device: int
    size: int
    share_pct: float
    offset: int
    duty_cycle_ms: float
    assignments: list[AssignmentDoc]
    processes: int = 1
    label: str = ""
    priority: int = 0
    spare: list[str] = msgspec.field(default_factory=list)


class DeviceDoc(msgspec.Struct):
    """One device, as far as the plan chooses it."""

    kind: str
    mechanism: Mechanism


class PromiseDoc(msgspec.Struct):
    """What one model is promised."""

    demand: float
    throughput: float
    worst_latency_ms: float
    slo_ms: float
    headroom: float | None


class PlanDoc(msgspec.Struct):
    """The whole document."""

    system: str
    feasible: bool
    devices_used: int
    unserved: dict[str, float]
    models: dict[str, PromiseDoc]
    gpulets: list[GpuletDoc]
    devices: list[DeviceDoc]
    planning_ms: float
    reason: str | UnsetType = UNSET
    timelines: list[Timeline] = msgspec.field(default_factory=list)
    residents: list[Resident] = msgspec.field(default_factory=list)
    dispatcher: str = ""


def to_doc(outcome: Plan | Infeasible, system: str, planning: Duration) -> PlanDoc:
    """A planner's answer as a document."""
    plan = outcome.partial if isinstance(outcome, Infeasible) else outcome
    return PlanDoc(
        system,
        isinstance(outcome, Plan),
        plan.devices_used,
        dict(outcome.unserved) if isinstance(outcome, Infeasible) else {},
        {name: _promise_doc(p) for name, p in plan.promises.items()},
        [_gpulet_doc(g) for g in plan.gpulets],
        [DeviceDoc(d.kind.name, d.mechanism) for d in plan.devices],
        to_ms(planning),
        str(outcome) if isinstance(outcome, Infeasible) else UNSET,
        list(plan.timelines),
        list(plan.residents),
        plan.dispatcher,
    )


def to_json(doc: PlanDoc) -> dict[str, Any]:
    """The document as plain values."""
    builtins: dict[str, Any] = msgspec.to_builtins(doc)
    return builtins


def _promise_doc(p: Promise) -> PromiseDoc:
    return PromiseDoc(p.demand, p.throughput, to_ms(p.worst_latency), to_ms(p.slo), p.headroom)


def _gpulet_doc(g: Gpulet) -> GpuletDoc:
    turns = [AssignmentDoc(t.model, t.batch, t.rate, to_ms(t.latency)) for t in g.turns]
    share, duty_ms = g.size.share_pct, to_ms(g.duty_cycle)
    doc = GpuletDoc(g.device, g.size.sms, share, g.offset, duty_ms, turns, g.processes, g.size.label, g.priority)
    doc.spare = list(g.spare)
    return doc


def read_plan(text: bytes, problem: Problem, source: str) -> Plan:
    """A plan written by `plan --json`, for the problem's devices.

    Raises `PlanError` when it is none, was refused, names other models or devices, or breaks its own rules.
    """
    try:
        doc = msgspec.json.decode(text, type=PlanDoc)
    except msgspec.MsgspecError as error:
        msg = f"{source}: not a plan: {error}"
        raise PlanError(msg) from None
    if not doc.feasible:
        msg = f"{source}: the plan was refused when it was made: {doc.reason or 'infeasible'}"
        raise PlanError(msg)
    plan = _plan(doc, problem, source)
    broken = (*_strangers(plan, problem), *plan.violations())
    if broken:
        msg = f"{source}: {broken[0]}"
        raise PlanError(msg)
    return plan


def _refuse_other_cut(doc: PlanDoc, problem: Problem, source: str) -> None:
    """The mechanism is the fleet's to choose: what serves stands on it. Uncut plans are drawn on devices that could be cut."""
    for here, there in zip(problem.devices, doc.devices, strict=True):
        if there.mechanism not in {here.mechanism, Mechanism.WHOLE}:
            msg = f"{source}: device {here.index} is cut by {there.mechanism} there, by {here.mechanism} in the fleet"
            raise PlanError(msg)


def _plan(doc: PlanDoc, problem: Problem, source: str) -> Plan:
    kinds = [d.kind for d in doc.devices]
    if kinds != [d.kind.name for d in problem.devices]:
        here = _counted([d.kind.name for d in problem.devices])
        msg = f"{source}: made for {_counted(kinds)}, the fleet has {here}"
        raise PlanError(msg)
    _refuse_other_cut(doc, problem, source)
    devices = tuple(replace(d, mechanism=x.mechanism) for d, x in zip(problem.devices, doc.devices, strict=True))
    return Plan(
        devices,
        tuple(_gpulet(place, g) for place, g in enumerate(doc.gpulets)),
        tuple(doc.timelines),
        tuple(doc.residents),
        {
            n: Promise(p.demand, p.throughput, from_ms(p.worst_latency_ms), from_ms(p.slo_ms))
            for n, p in doc.models.items()
        },
        doc.dispatcher,
    )


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) or "no devices"


def _gpulet(place: int, g: GpuletDoc) -> Gpulet:
    turns = tuple(Turn(a.model, a.batch, a.rate, from_ms(a.latency_ms)) for a in g.assignments)
    size = Size(g.size, g.share_pct, g.label)
    duty = from_ms(g.duty_cycle_ms)
    return Gpulet(place, g.device, size, g.offset, duty, turns, g.processes, 0, g.priority, tuple(g.spare))


def _strangers(plan: Plan, problem: Problem) -> list[str]:
    """Models that only one side knows, and turns that the fleet's models cannot run."""
    in_time = (run.model for line in plan.timelines for run in line.runs)
    cut: Mapping[str, None] = dict.fromkeys(m for g in plan.gpulets for m in g.models)
    spare = (name for g in plan.gpulets for name in g.spare)
    planned = dict.fromkeys([*cut, *spare, *in_time, *(r.model for r in plan.residents)])
    strangers = [f"model {name} is planned but not in the fleet" for name in planned if name not in problem.models]
    if strangers or not plan.gpulets:
        return strangers
    homeless = [f"model {name} of the fleet has no gpulet" for name in problem.models if name not in cut]
    turns = [(g, t, _most_rows(problem, g, t)) for g in plan.gpulets for t in g.turns]
    return homeless + [
        f"gpulet {g.id} plans batches of {t.batch} for model {t.model}, which takes at most {most} there"
        for g, t, most in turns
        if t.batch > most
    ]


def _most_rows(problem: Problem, g: Gpulet, turn: Turn) -> int:
    if turn.model not in problem.profile.models:
        return problem.models[turn.model].max_batch
    largest = problem.profile.max_batch(turn.model, g.size.sms, processes=g.processes)
    return min(problem.models[turn.model].max_batch, largest)
