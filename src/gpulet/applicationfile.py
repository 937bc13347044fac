"""Applications of a fleet file: their sections become stages with budgets, and what they ask of their models, demand."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from gpulet.application import BUILT_IN, Application, Stage, models_of
from gpulet.config import ApplicationSection, FleetFile, ModelSection, StageSection
from gpulet.core.ports import Problem
from gpulet.errors import ConfigError
from gpulet.split import best_throughput, split
from gpulet.units import Duration, from_ms


def read_applications(config: FleetFile, executor: str) -> tuple[Application, ...]:
    """The file's applications, checked; the budgets that are to be computed are 0.

    Raises `ConfigError` for stages that cannot be, missing budgets or objectives, a name that a model or another
    application has, an unknown built-in, and on real devices.
    """
    applications = tuple(_application(section) for section in config.applications)
    names = [application.name for application in applications]
    models = {section.name for section in config.models} | {m for a in applications for m in models_of(a)}
    for name in names:
        if executor != "simulated":
            msg = f"application {name}: executor {executor} serves no applications yet, since outputs of one model do "
            raise ConfigError(msg + 'not map onto inputs of the next; write executor = "simulated"')
        if name in models:
            msg = f"application {name} has the name of a model; a request for {name} could mean either"
            raise ConfigError(msg)
        if names.count(name) > 1:
            msg = f"application {name} is listed {names.count(name)} times"
            raise ConfigError(msg)
    return applications


def _application(section: ApplicationSection) -> Application:
    if not section.stages and section.name not in BUILT_IN:
        msg = f"application {section.name} has no stages and is not built in; built in are {', '.join(BUILT_IN)}"
        raise ConfigError(msg)
    if section.stages:
        stages = tuple(map(_stage, section.stages))
        slo = from_ms(section.slo_ms)
        if not slo:
            msg = (
                f"application {section.name}: slo_ms is missing; only the built-in {', '.join(BUILT_IN)} have their own"
            )
            raise ConfigError(msg)
    else:
        stages = BUILT_IN[section.name].stages
        slo = from_ms(section.slo_ms) or BUILT_IN[section.name].slo
    if section.split == "nexus" or not (section.split or any(stage.budget for stage in stages)):
        stages = tuple(replace(stage, budget=0) for stage in stages)
    else:
        _refuse_unbudgeted(section.name, stages)
    return Application(section.name, slo, stages)


def _stage(section: StageSection) -> Stage:
    name = section.name or section.model
    return Stage(name, section.model, tuple(section.after), section.fan_out, from_ms(section.budget_ms))


def _refuse_unbudgeted(application: str, stages: Sequence[Stage]) -> None:
    for stage in stages:
        if not stage.budget:
            msg = f'application {application}: stage {stage.name} has no budget_ms; split = "fixed" needs one for each of '
            raise ConfigError(msg + f"its {len(stages)} stages")


def with_applications(
    applications: Sequence[Application], rates: Mapping[str, float], sections: Iterable[ModelSection], bare: Problem
) -> Problem:
    """The problem with what applications at these rates ask: budgets are computed where there are none, models get no
    more time than the least budget of their stages, and rates add.

    Raises `ConfigError` where no split holds.
    """
    given = {section.name: bool(section.slo_ms) for section in sections}
    models, demand = dict(bare.models), dict(bare.demand)
    complete = tuple(_timed(application, bare) for application in applications)
    for application in complete:
        counts = application.requests_per_request()
        for stage in application.stages:
            model = models[stage.model]
            slo = min(model.slo, stage.budget) if given[stage.model] else stage.budget
            given[stage.model] = True
            models[stage.model] = replace(model, slo=slo)
            demand[stage.model] = demand.get(stage.model, 0.0) + rates[application.name] * counts[stage.name]
    return replace(bare, models=models, demand=demand, applications=complete, sent={**bare.sent, **rates})


def _timed(application: Application, bare: Problem) -> Application:
    """With a budget for each stage and the shortest time its model can take: one row on a whole device."""
    if not all(stage.budget for stage in application.stages):
        application = split(application, partial(_throughput, bare))
    stages = tuple(replace(stage, least=_least(bare, stage)) for stage in application.stages)
    return replace(application, stages=stages)


def _least(bare: Problem, stage: Stage) -> Duration:
    """The fastest shape class counts: what is too short only drops later, what is too long would drop in vain."""
    size = bare.devices[0].sizes()[-1].sms
    shapes = {point.shape for point in bare.profile.points if point.model == stage.model}
    return min(bare.profile.latency(stage.model, size, 1, shape) for shape in shapes)


def _throughput(bare: Problem, stage: Stage, time: Duration) -> float:
    return best_throughput(_curve(bare, stage), bare.models[stage.model].max_batch, time)


def _curve(bare: Problem, stage: Stage) -> tuple[Duration, ...]:
    whole = bare.devices[0].sizes()[-1]
    return bare.profile.curve(stage.model, whole.sms)
