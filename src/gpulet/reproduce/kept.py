"""Points of an earlier run, so that a long reproduction goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_kept(path: Path | None) -> dict[str, Any]:
    """What was kept; nothing where there is no file, or where it was cut off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(path: Path | None, points: Mapping[str, Any]) -> None:
    """All at once: a reader never sees half of it."""
    if path:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(points), encoding="utf-8")
        fresh.replace(path)
