"""Rows of the reproduction: every design point of every case, over worker processes; finished points are kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any

from gpulet.parallel import Advance, Job, run_all
from gpulet.planners.paris import UTILIZATIONS
from gpulet.profile import Profile
from gpulet.reproduce.dac22.cases import Case, facts, read_profile
from gpulet.reproduce.dac22.designs import DESIGNS, HOMOGENEOUS, IDLES, OURS, PAPER, Effort, throughput
from gpulet.reproduce.kept import keep, read_kept

LN4, LN8 = log(4), log(8)
FEW_DRAWS = 5
"""Random pools of each row of the studies; `--model` asks for more."""
GPUS = {"mobilenetv2": 4, "resnet50": 8}
FULL_GPUS = GPUS | {"bert": 7, "vgg16": 8, "densenet121": 4, "inceptionv3": 8}
"""GPUs by model: six slices of each are the recalled budgets of the paper; densenet121 and inceptionv3 are ours."""
_KEPT = "points.json"
_STUDIED = (*PAPER, OURS)


@dataclass(frozen=True, slots=True)
class Row:
    """One case with what is compared on it. `study` is the number in the list of studies, 0 for a row asked by itself.

    `profile`: another table than the one that was asked for.
    """

    case: Case
    designs: tuple[str, ...]
    draws: int
    study: int = 0
    profile: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What to reproduce. `kept`: the folder of finished points, none where nothing is kept."""

    profile: Path
    rows: tuple[Row, ...]
    effort: Effort
    workers: int
    kept: Path | None = None


def studies(*, full: bool, busy: Path | None = None) -> tuple[Row, ...]:
    """The sensitivity studies: spread, largest request, SLA and location of the rows; with `full` four more, ours.

    Which utilization makes a knee is compared on `busy`, a table that has both.
    """
    gpus = FULL_GPUS if full else GPUS
    bases = [Case(model, count) for model, count in gpus.items()]
    varied: list[tuple[int, Case]] = []
    for base in bases:
        varied += [(4, replace(base, mu=mu)) for mu in (LN4, LN8)]
        varied += [(1, replace(base, sigma=sigma)) for sigma in (0.3, 1.8)]
        varied += [(2, replace(base, largest=largest)) for largest in (16, 64)]
        varied += [(3, replace(base, sla=2.0))]
        if full:
            varied += [(5, replace(base, theta=theta)) for theta in (0.6, 0.7, 0.9, 0.95)]
            varied += [(7, replace(base, noise=n, alpha=a)) for n in (0.05, 0.1, 0.2) for a in (1.0, 1.2)]
            varied += [(8, replace(base, served_mu=LN8)), (8, replace(base, mu=LN8, served_mu=LN4))]
    rows = [Row(case, _STUDIED + IDLES * full, FEW_DRAWS, study) for study, case in varied]
    if full and busy:
        both = (Case("resnet50", GPUS["resnet50"], utilization=name) for name in UTILIZATIONS)
        rows += [Row(case, _STUDIED, FEW_DRAWS, 6, busy) for case in both]
    return tuple(rows)


def check(asked: Asked) -> None:
    """Raise what the rows cannot be, before any work."""
    for row in asked.rows:
        facts(_profile(row.profile or asked.profile), row.case)


def reproduce(asked: Asked, advance: Advance) -> list[dict[str, Any]]:
    """One JSON value for each row, in their order."""
    rows = [replace(row, profile=row.profile or asked.profile) for row in asked.rows]
    made = [facts(_profile(row.profile), row.case) for row in rows]
    path = asked.kept / _KEPT if asked.kept else None
    points = read_kept(path)
    wanted = {
        _key(row, design, draw, asked.effort): (row.profile, row.case, design, asked.effort, draw)
        for row in rows
        for design, draw in _points(row)
    }
    jobs = [Job(key, _point, arguments) for key, arguments in wanted.items() if key not in points]
    for key, rate in run_all(jobs, asked.workers, advance):
        points[key] = rate
        keep(path, points)
    return [_value(row, fact, points, asked.effort) for row, fact in zip(rows, made, strict=True)]


def _points(row: Row) -> list[tuple[str, int]]:
    """(design, draw) of a row: only random pools are drawn several times."""
    return [(d, draw) for d in row.designs for draw in range(row.draws if d.startswith("Random") else 1)]


def _key(row: Row, design: str, draw: int, effort: Effort) -> str:
    return json.dumps([asdict(row.case), design, draw, asdict(effort), _digest(row.profile)], sort_keys=True)


@cache
def _digest(path: Path | None) -> str:
    """The table's content, so that points of another table are not taken for these."""
    return sha256(path.read_bytes()).hexdigest()[:12] if path else ""


@cache
def _profile(path: Path | None) -> Profile:
    """Read once in each process."""
    assert path, "every row has its table by now"
    return read_profile(path)


def _point(path: Path, case: Case, design: str, effort: Effort, draw: int) -> float:
    return throughput(_profile(path), case, design, effort, draw)


def _value(row: Row, fact: Mapping[str, Any], points: Mapping[str, float], effort: Effort) -> dict[str, Any]:
    lbt = {
        design: fmean(points[_key(row, design, draw, effort)] for d, draw in _points(row) if d == design)
        for design in row.designs
    }
    if set(HOMOGENEOUS) <= set(lbt):
        lbt["GPU(max)"] = max(lbt[name] for name in HOMOGENEOUS)
    return {"study": row.study, **asdict(row.case), **fact, "lbt": lbt}


def unknown_design(names: Sequence[str]) -> str:
    """The first name that is no design; empty where all are."""
    return next((name for name in names if name not in DESIGNS), "")
