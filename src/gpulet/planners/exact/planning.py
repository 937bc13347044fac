"""The best plan, and how good it is."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from highspy import Highs
from highspy.highs import highs_linear_expression, highs_var

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Size
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.planners.exact.configurations import Bounds, Configuration, Waits, configurations, wanted_models
from gpulet.planners.exact.cuts import cuts, equal_devices, length
from gpulet.program import Program
from gpulet.units import to_ms

_ROUNDING = 1e-9


def exact(
    problem: Problem,
    *,
    waits: Waits = Waits.CYCLE,
    most_per_device: int | None = None,
    most_models: int | None = None,
) -> Plan | Infeasible:
    """The plan whose tightest model has the most headroom. Raises `PlanError` when the case is too large, or on MIG.

    `most_per_device` gpulets of at most `most_models` models each; no limit when not given.
    """
    bounds = Bounds(waits, most_models)
    classes = [_class(problem, devices, bounds, most_per_device) for devices in equal_devices(problem.devices)]
    found = {option.model for each in classes for c in each.useful for option in c.options}
    plan = _described(problem, _best(problem, classes, found), waits)
    return _refusal(problem, plan, [model for model in wanted_models(problem) if model not in found]) or plan


def optimum(
    problem: Problem,
    *,
    waits: Waits = Waits.CYCLE,
    most_per_device: int | None = None,
    most_models: int | None = None,
) -> float:
    """The largest factor on the demand that any plan of the class holds; infinite without demand."""
    plan = exact(problem, waits=waits, most_per_device=most_per_device, most_models=most_models)
    return _factor(plan if isinstance(plan, Plan) else plan.partial)


@dataclass(frozen=True, slots=True)
class _Class:
    """Equal devices: the configurations that are of use there, and the ways to cut one of them."""

    devices: tuple[Device, ...]
    useful: tuple[Configuration, ...]
    cuts: tuple[Counter[Size], ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    device: Device
    offset: float
    configuration: Configuration


def _class(problem: Problem, devices: tuple[Device, ...], bounds: Bounds, most_per_device: int | None) -> _Class:
    useful = configurations(problem, devices[0].sizes(), bounds)
    return _Class(devices, useful, cuts(devices[0], sorted({c.size for c in useful}), most_per_device))


def _best(problem: Problem, classes: Sequence[_Class], models: set[Model]) -> list[_Placed]:
    """What stands where in the best plan of these models."""
    if not models:
        return []
    program = Program()
    rates: dict[str, list[highs_linear_expression]] = {model.name: [] for model in models}
    variables = [_choices(program, each) for each in classes]
    for each, (_, counts) in zip(classes, variables, strict=True):
        for count, configuration in zip(counts, each.useful, strict=True):
            for option in configuration.options:
                share = configuration.rate(option) / problem.demand[option.model.name]
                rates[option.model.name].append(count * share)
    program.maximise_least([Highs.qsum(rates[name]) for name in problem.models if name in rates])
    solved = zip(classes, variables, strict=True)
    return [placed for each, (ways, counts) in solved for placed in _place(program, each, ways, counts)]


def _choices(program: Program, each: _Class) -> tuple[list[highs_var], list[highs_var]]:
    """How many devices are cut each way, how many gpulets have each configuration: no more of a size than are cut."""
    ways, slots = program.cut(len(each.devices), each.cuts, is_whole=True)
    counts = [program.variable(is_whole=True) for _ in each.useful]
    for size, room in slots.items():
        used = [count for count, configuration in zip(counts, each.useful, strict=True) if configuration.size == size]
        program.at_most(Highs.qsum(used), room)
    return ways, counts


def _place(program: Program, each: _Class, ways: list[highs_var], counts: list[highs_var]) -> Iterator[_Placed]:
    """The cuts on the devices in turn, the configurations in their slots."""
    waiting = [c for c, n in zip(each.useful, program.whole(counts), strict=True) for _ in range(n)]
    chosen = (cut for cut, n in zip(each.cuts, program.whole(ways), strict=True) for _ in range(n))
    for device, cut in zip(each.devices, chosen, strict=False):
        offset = 0.0
        for size in sorted(cut.elements(), reverse=True):
            fitting = next((c for c in waiting if c.size == size), None)
            if fitting is not None:
                waiting.remove(fitting)
                yield _Placed(device, offset, fitting)
                offset += length(device, size)
    assert not waiting, f"{len(waiting)} gpulets of the solution found no slot"


def _described(problem: Problem, placed: Sequence[_Placed], waits: Waits) -> Plan:
    standing = [item.configuration for item in placed]
    promises = {name: _promise(problem, model, standing, waits) for name, model in problem.models.items()}
    gpulets = tuple(_gpulet(place, item, promises) for place, item in enumerate(placed))
    return Plan(problem.devices, gpulets, promises=promises)


def _promise(problem: Problem, model: Model, standing: Sequence[Configuration], waits: Waits) -> Promise:
    mine = [(c, option) for c in standing for option in c.options if option.model == model]
    throughput = sum(c.rate(option) for c, option in mine)
    worst = max((c.worst(option, waits) for c, option in mine), default=0)
    return Promise(problem.demand.get(model.name, 0.0), throughput, worst, model.slo)


def _gpulet(place: int, item: _Placed, promises: Mapping[str, Promise]) -> Gpulet:
    c = item.configuration
    turns = []
    for option in c.options:
        promise = promises[option.model.name]
        rate = c.rate(option) * min(1.0, promise.demand / promise.throughput)  # in proportion to what each affords
        turns.append(Turn(option.model.name, option.batch, rate, option.latency))
    return Gpulet(place, item.device.index, c.size, int(item.offset), c.cycle, tuple(turns))


def _factor(plan: Plan) -> float:
    return min((p.throughput / p.demand for p in plan.promises.values() if p.demand > 0), default=inf)


def _refusal(problem: Problem, plan: Plan, hopeless: Sequence[Model]) -> Infeasible | None:
    short = {name: p.demand - p.throughput for name, p in plan.promises.items()}
    unserved = {name: left for name, left in short.items() if left > plan.promises[name].demand * _ROUNDING}
    if hopeless:
        model = hopeless[0]
        constraint = f"no size runs even one row twice within its SLO of {to_ms(model.slo):g} ms"
        served = f"0 of {problem.demand[model.name]:.1f} rows/s"
        return Infeasible(model.name, f"{constraint}: {served}", "raise its SLO", unserved, plan)
    if not unserved:
        return None
    name = max(unserved, key=lambda n: unserved[n] / problem.demand[n])
    left, demand = unserved[name], problem.demand[name]
    count = len(problem.devices)
    constraint = f"{demand - left:.1f} of {demand:.1f} rows/s, and no plan of {count} devices has more of every model"
    nearest = f"lower its rate by {left:.1f}/s and every other to {_factor(plan):.1%}, or add a device"
    return Infeasible(name, constraint, nearest, unserved, plan)
