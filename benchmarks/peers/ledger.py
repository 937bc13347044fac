"""Results of a run piece by piece, in a file of JSON lines: what stands there is not measured again."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from common import stamped

from peers.processes import Unavailable

Result = dict[str, Any]
_WHY = "why_not"
SKIPPED: Result = {"skipped": "no time is left for it"}


class Ledger:
    """Pieces by key, such as `W1/mosec/0`. A piece that failed or had no time is tried again when the run is resumed.

    `clock` says seconds; nothing is begun that is not expected to end before `end`.
    """

    def __init__(self, path: Path, end: float, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._end = end
        self._clock = clock
        self._pieces = {line.pop("key"): line for line in _lines(path) if "key" in line}

    def once(self, key: str, expected_s: float, measure: Callable[[], Result]) -> Result:
        """What is known of a piece, or measured now and written down before anything else happens."""
        known = self._pieces.get(key, {})
        if known and _WHY not in known:
            return known
        if self._clock() + expected_s > self._end:
            print(f"{key}: skipped, {SKIPPED['skipped']}", flush=True)
            return SKIPPED
        began = self._clock()
        try:
            result = measure()
        except Unavailable as why:
            result = {_WHY: str(why)}
        result["took_s"] = round(self._clock() - began, 1)
        self._pieces[key] = result
        self._write({"key": key, **result})
        print(f"{key}: {told(result)}", flush=True)
        return result

    def named(self, *parts: str) -> list[Result]:
        """Every piece that came to its end and whose key begins with these parts."""
        start = "/".join([*parts, ""])
        return [r for key, r in self._pieces.items() if f"{key}/".startswith(start) and _WHY not in r]

    @property
    def keys(self) -> list[str]:
        """Every piece that there is."""
        return list(self._pieces)

    def failures(self) -> dict[str, str]:
        """Why, by what failed."""
        return {key: r[_WHY] for key, r in self._pieces.items() if _WHY in r}

    def _write(self, line: Result) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(stamped(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[Result]:
    """What was written; a last line that was cut off is left out."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            print(f"{path}: a line that was cut off is left out", flush=True)


def told(result: Result) -> str:
    """A piece in one line: its numbers, not what lies below them."""
    shown = {k: round(v, 4 if v < 1 else 1) if isinstance(v, float) else v for k, v in result.items()}
    return ", ".join(f"{k} {v}" for k, v in shown.items() if not isinstance(v, dict | list))
