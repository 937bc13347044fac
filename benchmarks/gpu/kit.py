"""What every experiment is given and what it gives: a context, a result. Only the standard library, as the parent uses it too."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "gpu"
"""What was measured on a real GPU and committed; a rehearsal neither reads nor writes it."""
SIZES = (8, 16, 32, 48, 64, 80, 96, 112, 128, 132)
MEGABYTE = 1e6
GIGABYTE = 1e9


class Verdict(StrEnum):
    """What an experiment says of its question."""

    GOOD = "GOOD"
    BAD = "BAD"
    PARTLY = "PARTLY"
    """Time ran out: what is there stands, and the next run goes on."""
    FAILED = "FAILED"
    SKIPPED = "skipped"


DONE = frozenset({Verdict.GOOD, Verdict.BAD})
"""These are not measured again."""


class NotHereError(Exception):
    """The experiment needs what this machine does not have."""


@dataclass(frozen=True, slots=True)
class Result:
    """A verdict, one line with the numbers that carry it, and all numbers."""

    verdict: Verdict
    line: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """`out` is where results go, `models` the repository of exported models; `until` is this experiment's end.

    `is_real`: on a GPU. Else everything is rehearsed on the CPU, and no number means anything.
    """

    out: Path
    models: Path
    until: float
    is_real: bool
    tiny: bool
    dtype: str = "float16"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    @property
    def device(self) -> str:
        """As torch calls it."""
        return "cuda" if self.is_real else "cpu"

    def earlier(self, name: str) -> Path | None:
        """A file that this run or a committed one has left."""
        places = [self.out, *([RESULTS] if self.is_real else [])]
        return next((p / name for p in places if (p / name).exists()), None)

    def numbers(self, experiment: str) -> Mapping[str, Any]:
        """What an experiment has found so far; empty where it has not run."""
        path = self.earlier(f"{experiment}.json")
        found: Mapping[str, Any] = json.loads(path.read_text())["numbers"] if path else {}
        return found


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(data, indent=1, default=str) + "\n")
    unfinished.replace(path)


def as_written(name: str, result: Result, took: float, *, is_real: bool) -> dict[str, Any]:
    """The JSON of one experiment."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    what = {"experiment": name, "rehearsal": not is_real, "time": when, "seconds": round(took, 2)}
    return {**what, "verdict": result.verdict, "line": result.line, "numbers": dict(result.numbers)}


def keep(context: Context, name: str, numbers: Mapping[str, Any]) -> None:
    """What is measured so far, in case that the process does not come to its end."""
    result = Result(Verdict.PARTLY, "not at its end", numbers)
    write(context.out / f"{name}.json", as_written(name, result, 0.0, is_real=context.is_real))


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """How values lie."""
    named = {"median": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: round(quantile(values, part), 6) for name, part in named.items()}
    return {"n": len(values), "min": round(min(values), 6), **found, "max": round(max(values), 6)}


def judged(complaints: Sequence[str], said: str, numbers: Mapping[str, Any]) -> Result:
    """GOOD without complaints; else BAD, and the first of them in the line."""
    kept = {**numbers, "complaints": list(complaints)}
    if not complaints:
        return Result(Verdict.GOOD, said, kept)
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return Result(Verdict.BAD, f"{complaints[0]}{more}; {said}", kept)
