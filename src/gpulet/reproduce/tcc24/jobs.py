"""Rows of the comparison: every system of every case, over worker processes; finished points are kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpulet.parallel import Advance, Job, run_all
from gpulet.reproduce.kept import keep, read_kept
from gpulet.reproduce.tcc24.arrivals import Kind, Process, Source
from gpulet.reproduce.tcc24.cases import GREEDY_IDEAL, IDEAL, IDEALS, WINDOWS, Case, row
from gpulet.reproduce.tcc24.data import MIXES

SYSTEMS = (
    "temporal",
    "fixed-batch",
    "triton",
    "clipper",
    "clipper-regression",
    "nexus",
    "clockwork",
    "infaas",
    "gslice",
    "gslice-static",
    "max-throughput",
    "max-min",
    "rolling",
    "dstack",
    "gpulet",
)
"""What is compared where nothing is said, beside the two ideals."""
RIVALS = (
    *(name for name in SYSTEMS if name != "gpulet"),
    "round-robin",
    "elastic",
    "glet",
    "greedy",
    "sbp",
    "dedicated",
)
"""Every other system that shares MPS devices and plans within seconds."""
_CLUSTER = ("dedicated", "temporal", "dstack", "gslice-static", "rolling", "gpulet")
_CLUSTER_GPUS = 4
_ARRIVING = ("C-4", "C-7")
_KEPT = "points.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A case with the systems that are compared on it."""

    case: Case
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to reproduce. `kept`: the folder of finished points, none where nothing is kept."""

    rows: tuple[Row, ...]
    workers: int
    kept: Path | None = None


def everything(systems: Sequence[str], windows: int = WINDOWS) -> tuple[Row, ...]:
    """All mixes with queues that are never empty, the other arrivals on four and seven models, and the cluster."""
    served = tuple(name for name in systems if name not in IDEALS)
    rows = [Row(Case(models, windows=windows), tuple(systems)) for models in MIXES.values()]
    for name in _ARRIVING:
        for kind in (Kind.LINK, Kind.INVERSE, Kind.STEPS):
            rows += [Row(Case(MIXES[name], Source(kind, process), windows), served) for process in Process]
    together = tuple(name for name in _CLUSTER if name in (*systems, "dedicated"))
    four = MIXES["C-4"]
    clusters = [Case(names, windows=windows, gpus=_CLUSTER_GPUS) for names in (four, tuple(f"{n}_t4" for n in four))]
    return (*rows, *(Row(case, together) for case in clusters))


def defaults() -> tuple[str, ...]:
    """Every system, and the ideals."""
    return (*SYSTEMS, IDEAL, GREEDY_IDEAL)


def reproduce(asked: Asked, advance: Advance) -> list[dict[str, Any]]:
    """One JSON value for each row, in their order."""
    path = asked.kept / _KEPT if asked.kept else None
    points = read_kept(path)
    wanted = {_key(r.case, name): (r.case, name) for r in asked.rows for name in r.systems}
    jobs = [Job(key, row, arguments) for key, arguments in wanted.items() if key not in points]
    for key, value in run_all(jobs, asked.workers, advance):
        points[key] = value
        keep(path, points)
    return [_value(r, points) for r in asked.rows]


def _value(asked: Row, points: Mapping[str, Any]) -> dict[str, Any]:
    case = asked.case
    return {
        "mix": case.mix,
        "arrivals": case.source.kind.value,
        "process": case.source.process.value,
        "gpus": case.gpus,
        "load": case.load,
        "systems": {name: points[_key(case, name)] for name in asked.systems},
    }


def without_timelines(value: Mapping[str, Any]) -> dict[str, Any]:
    """For `--json`: everything but the runs."""
    rows = {name: {k: v for k, v in found.items() if k != "timeline"} for name, found in value["systems"].items()}
    return {**value, "systems": rows}


def _key(case: Case, name: str) -> str:
    return json.dumps([asdict(case), name], sort_keys=True)
