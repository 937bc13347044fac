"""A core with live control, put together as `[control]` of a fleet file says."""

from gpulet.configcontrol import ControlSection
from gpulet.core.calls import Steering
from gpulet.core.control import Controlled
from gpulet.core.epochs import EpochRules, Epochs
from gpulet.core.ports import Problem
from gpulet.core.replan import Estimator, Watch, Watching
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.core.weighing import Weights
from gpulet.fleetfile import Site
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.spares import Spares
from gpulet.system import System
from gpulet.systems import make_scheduler
from gpulet.units import MIB, SECOND, Instant, from_ms


def make_core(
    control: ControlSection, system: System, problem: Problem, plan: Plan, limits: Limits, now: Instant = 0
) -> Scheduler | Controlled:
    """A fresh core for a plan; with live control unless that is off, watching from `now` on."""
    scheduler = make_scheduler(system, problem, plan, limits)
    if control.mode == "off":
        return scheduler
    estimator = _estimator(control, problem, now)
    return Controlled(scheduler, problem, plan.unfolded(), estimator, system.dispatcher, _steering(control))


def spares_of(site: Site) -> Spares:
    """As `[control]` allows; what a file has is taken for what its model takes."""
    control, limits = site.config.control, site.config.limits
    if control.mode == "off" or limits.memory_mib or not site.system.retunes:
        return Spares()
    sizes = {name: artifact.path.stat().st_size for name, artifact in site.artifacts.items()}
    return Spares(round(control.spare_mib * MIB), sizes)


def _estimator(control: ControlSection, problem: Problem, now: Instant) -> Estimator:
    """What clients ask of applications is watched as if these were models: their stages follow from it."""
    watched = {**problem.models, **{a.name: Model(a.name, a.slo) for a in problem.applications}}
    demand = {**problem.demand, **{a.name: problem.sent.get(a.name, 0.0) for a in problem.applications}}
    if control.rule == "epochs":
        return Epochs(watched, demand, now, _epoch_rules(control))
    rules = Watching(
        from_ms(control.look_ms),
        control.rise,
        control.fall,
        round(control.patience_s * SECOND),
        round(control.lead_s * SECOND),
    )
    return Watch(watched, demand, now, rules)


def _epoch_rules(control: ControlSection) -> EpochRules:
    return EpochRules(
        round(control.epoch_s * SECOND),
        from_ms(control.reading_ms),
        control.headroom,
        control.low_headroom,
        control.low_rate,
        1 + control.growth,
        control.growth_rate,
        1 - control.shrink,
    )


def _steering(control: ControlSection) -> Steering:
    weights = Weights(round(control.horizon_s * SECOND))
    is_advice = control.mode == "advise"
    return Steering(weights, is_advice, control.fewest, planning=from_ms(control.plan_ms))
