"""The analytic latency model against public tables: fitted on 8 points of every model, judged on all others.

Prints one JSON line per model and two per table (all models, and those that the three held-out points accept); `--forms`
prints a line for every form and table instead. The tables (../shared/data) are not ours to ship: where they are absent
there is nothing to do.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gpulet.device import Mechanism, find_kind, mps_size, sizes
from gpulet.importing import import_tables
from gpulet.importing.table import read_table
from gpulet.roofline import FORMS, Form, Work
from gpulet.roofline.fit import Fitted, Sample, best_form, errors_pct, fitted
from gpulet.roofline.hardware import SINGLE
from gpulet.roofline.works import ALIASES, WORKS

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
SSD300 = Work(62.8e9, 26.3e6, 40e6, 40, "estimate: iGniter does not say which SSD; SSD300 on VGG-16 assumed")
SHORT_BERT = Work(11.0e9, 109.5e6, 15.9e6, 111, "counted from the layer shapes, 64 tokens")
Cell = tuple[float, int]
"""A share in percent or a number of MIG slices, and rows."""


@dataclass(frozen=True, slots=True)
class Case:
    """A table, its device kind, the 8 cells that every model is fitted to, and 3 more that judge the fit.

    `p95_pct` is what the 95th percentile of the error may be; the median may be 5 %. Points of other `shapes` are left out.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    fit: tuple[Cell, ...]
    held_out: tuple[Cell, ...]
    p95_pct: float
    works: Mapping[str, Work]
    shapes: tuple[str, ...] = ("",)

    def spots(self, cells: Sequence[Cell]) -> list[tuple[int, int]]:
        """The same in SMs."""
        kind = find_kind(self.kind)
        if not self.kind.startswith("a100"):
            return [(mps_size(kind, share).sms, rows) for share, rows in cells]
        slices = {int(size.label.partition("g")[0]): size.sms for size in sizes(kind, Mechanism.MIG)}
        return [(slices[int(n)], rows) for n, rows in cells]


MEDIAN_PCT = 5.0
_MIG_FIT = ((7, 1), (7, 32), (7, 128), (1, 1), (1, 16), (3, 8), (3, 64), (2, 4))
_MIG_HELD = ((7, 16), (2, 16), (3, 32))
CASES = (
    Case(
        "RTX 2080 Ti, gpu-lets",
        "rtx2080ti",
        ("rtx2080ti_latency.csv",),
        ((100, 1), (100, 8), (100, 32), (20, 1), (20, 8), (50, 16), (20, 32), (60, 4)),
        ((80, 16), (40, 8), (40, 2)),
        22.0,
        {},
    ),
    Case(
        "V100, iGniter",
        "v100",
        ("v100_igniter/solo.csv", "v100_igniter/solo_batch1_edge_shares.csv"),
        ((80, 1), (80, 8), (80, 32), (20, 1), (20, 8), (50, 32), (20, 32), (50, 4)),
        ((40, 16), (60, 4), (60, 24)),
        10.0,
        {"ssd": SSD300},
    ),
    Case(
        "A100-80GB, ParvaGPU",
        "a100-80gb",
        ("a100_parvagpu/profile.csv",),
        _MIG_FIT,
        _MIG_HELD,
        16.0,
        {"bert": WORKS["bert-large"]},
    ),
    Case(
        "A100-80GB, MIGProfiler",
        "a100-80gb",
        ("a100_migprofiler/vision.csv", "a100_migprofiler/text.csv"),
        _MIG_FIT,
        _MIG_HELD,
        16.0,
        {"bert-base": SHORT_BERT},
        ("", "64"),
    ),
)


@dataclass(frozen=True, slots=True)
class Tried:
    """A table under one form: the fit of every model, and its errors in percent at all points that it was not fitted to."""

    case: Case
    form: Form
    fits: Mapping[str, Fitted]
    errors: Mapping[str, Sequence[float]]

    def line(self, names: Sequence[str], what: str) -> dict[str, Any]:
        """Errors of these models together."""
        own = list(chain.from_iterable(self.errors[name] for name in names))
        median, p95 = np.percentile(own, [50, 95]) if own else (0.0, 0.0)
        said = {"table": self.case.name, "models": what, "form": str(self.form), "points": len(own)}
        within = {
            "is_within": bool(median <= MEDIAN_PCT and p95 <= self.case.p95_pct),
            "limit_p95_pct": self.case.p95_pct,
        }
        return {**said, "median_pct": round(float(median), 2), "p95_pct": round(float(p95), 2), **within}

    def model_line(self, name: str) -> dict[str, Any]:
        """The same of one, and whether to plan with it."""
        fit = self.fits[name]
        line = self.line([name], name)
        planned = "analytic" if fit.is_accepted and line["is_within"] else "table"
        return {**line, "held_out_pct": round(fit.held_out_pct, 2), "planned_from": planned}

    @property
    def accepted(self) -> list[str]:
        """The models whose held-out points accept the fit."""
        return [name for name, fit in self.fits.items() if fit.is_accepted]


def tried(case: Case, folder: Path, form: Form) -> Tried:
    """Every model of a table under one form."""
    fits, errors = {}, {}
    chosen, held = case.spots(case.fit), case.spots(case.held_out)
    for name, samples in _samples(case, folder).items():
        work = case.works.get(name) or WORKS[ALIASES.get(name, name)]
        parts = ([s for s in samples if s[:2] in spots] for spots in (chosen, held))
        fits[name] = fitted(*parts, work, SINGLE[case.kind], form)
        errors[name] = errors_pct(fits[name].model, [s for s in samples if s[:2] not in chosen])
    return Tried(case, form, fits, errors)


def best(case: Case, folder: Path) -> Tried:
    """The table under the form that its 8 points choose."""
    found = {form: tried(case, folder, form) for form in FORMS}
    return found[best_form({form: t.fits.values() for form, t in found.items()})]


def _samples(case: Case, folder: Path) -> dict[str, list[Sample]]:
    tables = [read_table((folder / name).read_text(encoding="utf-8"), name) for name in case.files]
    points, _ = import_tables(tables, find_kind(case.kind))
    samples: dict[str, list[Sample]] = {}
    for p in points:
        if p.shape in case.shapes:
            samples.setdefault(p.model, []).append((p.size, p.rows, p.mean))
    return samples


def lines(folder: Path, *, forms: bool) -> Iterator[dict[str, Any]]:
    """What is printed."""
    for case in CASES:
        if forms:
            yield from (t.line(list(t.fits), "all") for t in (tried(case, folder, form) for form in FORMS))
            continue
        found = best(case, folder)
        yield from (found.model_line(name) for name in found.fits)
        yield found.line(list(found.fits), "all")
        yield found.line(found.accepted, "accepted")


if __name__ == "__main__":
    if not SHARED_DATA.is_dir():
        sys.exit("skipped: the third-party profile tables (../shared/data) are not beside the project")
    for line in lines(SHARED_DATA, forms="--forms" in sys.argv[1:]):
        print(json.dumps(line))
