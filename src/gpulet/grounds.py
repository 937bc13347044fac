"""Behind a site's mechanism: the ground that its workers stand on, and the program that they run."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gpulet.device import Mechanism
from gpulet.errors import Unusable
from gpulet.executors.cpu import Cores
from gpulet.executors.daemons import Daemons
from gpulet.executors.gpus import REAL, REHEARSED, RUNTIMES, Gpus
from gpulet.executors.ground import Ground
from gpulet.executors.migground import MadeFile, MigGround, Permission
from gpulet.executors.mps import MpsGround, Options
from gpulet.executors.mpscontrol import BINARY, Binary, find_binary
from gpulet.executors.nvmllibrary import open_for_carving, open_nvml
from gpulet.executors.process import CPU, Program
from gpulet.fleetfile import Site, usable_cores
from gpulet.store import cache_directory
from gpulet.units import MIB


def program_of(site: Site) -> Program:
    """What the site's workers run; those of GPUs import the runtimes of its models before they are told of any."""
    programs: Mapping[str, Program] = {"cpu": CPU, "gpu": REAL, "rehearsal": REHEARSED}
    program = programs[site.executor]
    if site.executor == "cpu":
        most = 0.0 if site.config.limits.memory_mib else site.config.server.standby_mib
        return replace(program, standby_bytes=round(most * MIB))
    formats = {artifact.path.suffix for artifact in site.artifacts.values()}
    runtimes = dict.fromkeys(name for ending in sorted(formats & RUNTIMES.keys()) for name in RUNTIMES[ending])
    return replace(program, arguments=(*program.arguments, *runtimes))


def ground_of(site: Site) -> Ground:
    """Where the site's workers stand; raises `Unusable` for MPS that is not installed."""
    if site.executor == "cpu":
        return Cores(usable_cores())
    match site.devices[0].mechanism:
        case Mechanism.MPS | Mechanism.MIG if visible() is not None:
            msg = "CUDA_VISIBLE_DEVICES is set, and under mps and mig GPUs are counted as NVML does: unset it"
            raise Unusable(msg)
        case Mechanism.MPS:
            return MpsGround(open_nvml, _daemons(), Options(_memory(site)))
        case Mechanism.MIG:
            noted = MadeFile(cache_directory() / "mig-made.json")
            permission = Permission(frozenset(site.config.server.carve_mig), open_for_carving, noted)
            return MigGround(open_nvml, permission, _daemons() if find_binary() else None)
        case _:
            return Gpus(visible() if site.executor == "gpu" else None)


def _daemons() -> Daemons:
    binary = find_binary()
    if not binary:
        msg = f"mechanism mps: {BINARY} is not installed"
        raise Unusable(msg)
    return Daemons(Binary(binary, os.environ), Path(tempfile.gettempdir()))


def _memory(site: Site) -> dict[str, int]:
    return {section.name: round(section.memory_mib * MIB) for section in site.sections}


def visible() -> tuple[str, ...] | None:
    """The GPUs that whoever started us allowed, in the order of device indices; None where nobody said."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if named is None else tuple(name.strip() for name in named.split(",") if name.strip())
