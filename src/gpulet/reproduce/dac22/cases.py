"""A case: one model, one distribution of rows, one budget; and what PARIS makes of it.

The settings are the paper's where they are recalled: the SLA is a multiple of the largest request's latency on the
largest size, counts fill six slices of each GPU, and GPU(7) has as many GPUs, or fewer where the slices come out even.
"""

from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

from gpulet.core.ports import Problem
from gpulet.cutting import Cutter
from gpulet.device import Device, Kind, Mechanism, find_kind
from gpulet.errors import BadInput, ProfileError
from gpulet.importing import import_tables
from gpulet.importing.table import read_table
from gpulet.model import Model
from gpulet.planners.paris import THETA, UTILIZATIONS, Rounding, partition
from gpulet.profile import Profile
from gpulet.profiletable import parse_profile
from gpulet.rows import DEFAULT_LARGEST, lognormal
from gpulet.units import to_ms

KIND = "a100-80gb"
_SLICES_OF_A_GPU = 6
WHOLE = 7
_MOST_SLA = 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """What is varied. `served_mu`: requests come with another mu than was planned for. `noise`: sigma of log-normal runs."""

    model: str
    gpus: int
    mu: float = log(4)
    sigma: float = 0.9
    largest: int = DEFAULT_LARGEST
    sla: float = 1.5
    theta: float = THETA
    rounding: Rounding = Rounding.MAXMIN
    utilization: str = "saturation"
    served_mu: float | None = None
    noise: float = 0.0
    alpha: float = 1.0


def read_profile(path: Path) -> Profile:
    """A table of ours, or a published one of an A100-80GB; raises `ProfileError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"profile {path} cannot be read: {error}"
        raise ProfileError(msg) from None
    if "mig_slices" in text.partition("\n")[0]:
        points, _ = import_tables([read_table(text, str(path))], find_kind(KIND), "auto", 1, [], None)
        return Profile(points)
    return parse_profile(text, int, str(path))


def planned(profile: Profile, case: Case, *, gpus: int = 0, slices: int = 0) -> Problem:
    """The problem to plan, at one request per second; raises `BadInput` for what the profile cannot answer."""
    kind = find_kind(KIND)
    model = Model(case.model, _sla(profile, case, kind), profile.max_batch(case.model, _largest(profile, case, kind)))
    rows = lognormal(case.mu, case.sigma, case.largest)
    devices = tuple(Device(place, kind, Mechanism.MIG) for place in range(gpus or case.gpus))
    return Problem(
        {case.model: model},
        {case.model: rows.mean},
        devices,
        profile,
        sent={case.model: 1.0},
        rows={case.model: rows},
        slices=slices or _SLICES_OF_A_GPU * case.gpus,
    )


def served(problem: Problem, case: Case) -> Problem:
    """The same with the requests that really come."""
    if case.served_mu is None:
        return problem
    return replace(problem, rows={case.model: lognormal(case.served_mu, case.sigma, case.largest)})


def whole_gpus(gpus: int) -> int:
    """How many GPUs GPU(7) has beside counts of six slices a GPU: as many slices where that comes out even."""
    slices = _SLICES_OF_A_GPU * gpus
    return slices // WHOLE if slices % WHOLE == 0 else gpus


def facts(profile: Profile, case: Case) -> dict[str, Any]:
    """The SLA and every step of PARIS, by slices: knees, R in ms, fractional and whole counts."""
    problem = planned(profile, case)
    cutter = Cutter(problem.devices, problem.slices)
    found = partition(
        problem, cutter, theta=case.theta, rounding=case.rounding, utilization=UTILIZATIONS[case.utilization]
    )
    segments = found.segments[case.model]
    names = {s.size: str(int(cutter.units(s.size))) for s in segments}
    return {
        "sla_ms": to_ms(problem.models[case.model].slo),
        "knees": {names[s.size]: s.knee for s in segments},
        "r_ms": {names[s.size]: 1000 * s.demand for s in segments},
        "n_real": {names[size]: value for (_, size), value in found.fractional.items()},
        "counts": {names[size]: count for (_, size), count in found.counts.items()},
    }


def _largest(profile: Profile, case: Case, kind: Kind) -> int:
    """SMs of the largest size, on which the model must have been measured with its largest requests."""
    sms = Device(0, kind, Mechanism.MIG).sizes()[-1].sms
    most = profile.max_batch(case.model, sms)
    if case.largest > most:
        msg = f"requests of up to {case.largest} rows: {case.model} was measured with {most} at most on {sms} SMs"
        raise BadInput(msg)
    return sms


def _sla(profile: Profile, case: Case, kind: Kind) -> int:
    if not 0 < case.sla <= _MOST_SLA:
        msg = f"the SLA must be a multiple above 0, at most {_MOST_SLA:g}, of the largest request's latency, is {case.sla:g}"
        raise BadInput(msg)
    return round(case.sla * profile.measured(case.model, _largest(profile, case, kind))[case.largest - 1])
