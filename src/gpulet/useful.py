"""How many SMs models make use of, for measures: what they hold beyond that is held in vain."""

from dataclasses import replace

from gpulet.core.ports import Problem
from gpulet.device import Device, Mechanism
from gpulet.efficacy import points_of, sizes_of, within
from gpulet.errors import ProfileError
from gpulet.model import Model


def useful_sizes(problem: Problem) -> dict[str, int]:
    """The knee of each model in SMs: the size of its highest efficacy at any rate (D-STACK, Dhakal et al., TCC 2024).

    Sizes are those that the fleet's kind of device can be cut into, on an uncut one any number of SMs. Models that nobody
    has measured, or that keep their objective at no size, are left out.
    """
    device = next(iter(problem.devices), None)
    if device is None:
        return {}
    knees = {name: _knee(problem, model, device) for name, model in problem.models.items()}
    return {name: sms for name, sms in knees.items() if sms}


def _knee(problem: Problem, model: Model, device: Device) -> int:
    """0 where there is none."""
    if device.mechanism is Mechanism.WHOLE:
        device = replace(device, mechanism=Mechanism.CPU)  # cut as cores are: any number
    try:
        points = points_of(problem.profile, model.name, sizes_of(problem.profile, model.name, device))
    except ProfileError:
        return 0
    best = next(within(points, model), None)
    return best.size.sms if best else 0
