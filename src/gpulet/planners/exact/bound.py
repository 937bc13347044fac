"""What no dispatcher can exceed."""

from collections.abc import Sequence
from math import inf

from highspy import Highs
from highspy.highs import highs_linear_expression

from gpulet.core.ports import Problem
from gpulet.device import Device, Size
from gpulet.model import Model
from gpulet.planners.exact.configurations import wanted_models
from gpulet.planners.exact.cuts import cuts, equal_devices
from gpulet.program import Program
from gpulet.units import SECOND


def physical_bound(problem: Problem) -> float:
    """A factor on the demand that nothing can exceed, whatever is dispatched how.

    At a size, model m makes at most its best b / L(b) with L(b) <= SLO, for the share of time that it runs; at every
    instant the sizes in use fit their device. Runs that overlap on devices that are not cut (`whole`) are not covered.
    """
    wanted = wanted_models(problem)
    if not wanted:
        return inf
    program = Program()
    rates: dict[str, list[highs_linear_expression]] = {model.name: [] for model in wanted}
    for devices in equal_devices(problem.devices):
        fastest = _fastest(problem, devices[0], wanted)
        _, time = program.cut(len(devices), cuts(devices[0], list(fastest), None), is_whole=False)
        for size, by_model in fastest.items():
            shares = {name: program.variable() for name in by_model}
            program.at_most(Highs.qsum(shares.values()), time[size])
            for name, share in shares.items():
                rates[name].append(share * (by_model[name] / problem.demand[name]))
    return program.maximise_least([Highs.qsum(terms) for terms in rates.values()])


def _fastest(problem: Problem, device: Device, wanted: Sequence[Model]) -> dict[Size, dict[str, float]]:
    """The most rows/s of each model within its SLO, at the sizes where any has more than at a smaller one."""
    fastest: dict[Size, dict[str, float]] = {}
    before: dict[str, float] = {}
    for size in device.sizes():
        rates = {model.name: _most(problem, model, size) for model in wanted}
        gained = {name: rate for name, rate in rates.items() if rate > before.get(name, 0.0)}
        before |= gained
        if gained:
            fastest[size] = {name: rate for name, rate in rates.items() if rate > 0}
    return fastest


def _most(problem: Problem, model: Model, size: Size) -> float:
    is_known = size.sms >= problem.profile.sizes(model.name)[0]
    curve = problem.profile.curve(model.name, size.sms)[: model.max_batch] if is_known else ()
    in_time = [batch * SECOND / latency for batch, latency in enumerate(curve, start=1) if latency <= model.slo]
    return max(in_time, default=0.0)
