"""The workloads of gpu-lets' evaluation, and the figures it published of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from gpulet.application import BUILT_IN, Application
from gpulet.core.ports import Problem
from gpulet.device import Device, Mechanism
from gpulet.model import Model
from gpulet.reproduce.atc22.data import KIND, LENETS, Measurements
from gpulet.units import MIB, from_ms, to_ms

GOOGLENET, RESNET, SSD, VGG = "googlenet", "resnet50", "ssd-mobilenetv1", "vgg16"
DEVICES = 4
MAX_BATCH = 32

SLO_MS: Mapping[str, float] = {GOOGLENET: 66, RESNET: 108, VGG: 142, SSD: 202}
"""ATC 2022, table of models (specification of gpu-lets, section 6)."""
SCHEDULABILITY_SLO_MS: Mapping[str, float] = {"lenet1": 5, GOOGLENET: 44, RESNET: 95, SSD: 136, VGG: 130}
"""The arXiv version's five models (specification, section 5)."""
_MEMORY_MIB: Mapping[str, int] = {GOOGLENET: 1720, RESNET: 1820, SSD: 640, VGG: 2920, **dict.fromkeys(LENETS, 50)}
"""resource/mem-config.json of the artifact (specification, section 2.3)."""
_IMAGE = 4 * 3 * 224 * 224
_INPUT_BYTES: Mapping[str, int] = {
    GOOGLENET: _IMAGE,
    RESNET: _IMAGE,
    VGG: _IMAGE,
    SSD: 4 * 3 * 300 * 300,
    **dict.fromkeys(LENETS, 4 * 28 * 28),
}


WORKLOADS = (BUILT_IN["traffic"], BUILT_IN["game"])

RERUN_COUNTS = {"sbp": 619, "greedy": 1014, "glet": 1023, "glet-int": 1017}
"""The artifact's own scheduler on levels 0, 100, 200, 400 (specification, section 5)."""
RERUN_LEVELS = (0, 100, 200, 400)
RERUN_PEAKS = {"traffic": {"sbp": 320, "greedy": 530, "glet": 650}}
RERUN_SATURATION = {
    (GOOGLENET, 20): (13, 400.5),
    (GOOGLENET, 40): (18, 566.9),
    (GOOGLENET, 100): (21, 662.4),
    (RESNET, 20): (9, 185.9),
    (RESNET, 40): (17, 318.7),
    (RESNET, 100): (24, 454.7),
}
PAPER_NAMES = {"SBP": "sbp", "greedy_best_fit": "greedy", "glet": "glet", "glet_int": "glet-int"}


def problem(
    measured: Measurements, slo_ms: Mapping[str, float], rates: Mapping[str, float], devices: int = DEVICES
) -> Problem:
    """Models in the artifact's order of ids, which breaks its ties; models without a rate are left out."""
    order = [*LENETS, GOOGLENET, RESNET, SSD, VGG]
    models = {
        name: Model(name, from_ms(slo_ms[name]), MAX_BATCH, _MEMORY_MIB[name] * MIB, _INPUT_BYTES[name])
        for name in order
        if rates.get(name, 0) > 0
    }
    fleet = tuple(Device(index, KIND, Mechanism.MPS) for index in range(devices))
    demand = {name: float(rates[name]) for name in models}
    return Problem(models, demand, fleet, measured.profile, interference=measured.interference)


def at_rate(measured: Measurements, application: Application, rate: float) -> Problem:
    """Every stage of the application at the application's rate, within its budget."""
    budgets_ms = {stage.model: to_ms(stage.budget) for stage in application.stages}
    plain = problem(measured, budgets_ms, dict.fromkeys(budgets_ms, rate))
    whole = plain.devices[0].sizes()[-1].sms
    stages = tuple(replace(s, least=plain.profile.latency(s.model, whole, 1)) for s in application.stages)
    return replace(plain, applications=(replace(application, stages=stages),), sent={application.name: rate})


def scenarios(levels: Sequence[float]) -> list[dict[str, float]]:
    """Every combination of rate levels over the five models, but the one without any load."""
    names = list(SCHEDULABILITY_SLO_MS)
    every = (dict(zip(names, rates, strict=True)) for rates in product(levels, repeat=len(names)))
    return [rates for rates in every if any(rates.values())]
