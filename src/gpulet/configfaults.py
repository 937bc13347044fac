"""What is wrong with a fleet file, told with line, key, value and what is allowed."""

import re
from collections.abc import Callable

from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]
"""Names of tables and keys, and places in arrays of tables, from the outside in."""


def told(error: ErrorDetails, text: str, source: str, known: Callable[[Location], list[str]]) -> str:
    """A fault in `text`, which came from `source`; `known` gives the keys of a table."""
    line = _line_of(text, error["loc"])
    where = f"{source}: line {line}" if line else source
    return f"{where}: {_explain(error, known)}"


def _explain(error: ErrorDetails, known: Callable[[Location], list[str]]) -> str:
    """Key, value and what is allowed, in our words where pydantic's would confuse."""
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in error["loc"]).replace(".[", "[")
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; known are {', '.join(known(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("should be", "must be")
    return f"{key} = {error['input']!r}: {message}"


def _line_of(text: str, location: Location) -> int:
    """The line of a key: its tables' headers, counted, then the key below. 0 when it stands nowhere (it is missing)."""
    lines = text.splitlines()
    start, path, left = -1, "", list(location)
    while left:
        path = f"{path}.{left[0]}" if path else str(left[0])
        header = re.compile(rf"\s*\[+\s*{re.escape(path)}\s*\]+")
        starts = [n for n in range(start + 1, len(lines)) if header.match(lines[n])]
        nth = left[1] if len(left) > 1 and isinstance(left[1], int) else -1
        if max(0, nth) >= len(starts):
            break
        start, left = starts[max(0, nth)], left[1 if nth < 0 else 2 :]
    if not left:
        return start + 1
    key = re.compile(rf"\s*{re.escape(str(left[0]))}\s*=")
    found = next((n for n in range(start + 1, len(lines)) if key.match(lines[n])), start)
    return found + 1
