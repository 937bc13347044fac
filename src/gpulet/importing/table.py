"""A foreign table as lines that are checked where they are read: every refusal names file, line and value."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from math import inf, isfinite
from typing import NoReturn

from gpulet.errors import ProfileError

Columns = tuple[str, ...]
BARE: Columns = ("model", "share_pct", "batch", "latency_ms")
"""The columns of gpu-lets' latency table, which has no header in the artifact."""
LARGEST_COUNT = 1_000_000
"""Of batches, processes, tokens: a profile is dense in batches, so that a slip of digits would fill the memory."""
_ALIASES = {"partition": "share_pct"}
"""The artifact's word for a share."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row by column; `where` is its file and line."""

    where: str
    fields: Mapping[str, str]

    def text(self, name: str) -> str:
        """A name, which cannot be empty."""
        return self.fields[name] or self.refuse(name, "given")

    def above_zero(self, name: str, top: float = inf) -> float:
        """A number above 0 and at most `top`."""
        value = self._number(name)
        if not 0 < value <= top:
            self.refuse(name, "above 0" if top == inf else f"above 0 and at most {top:g}")
        return value

    def not_negative(self, name: str, top: float = inf) -> float:
        """A number from 0 to `top`."""
        value = self._number(name)
        if not 0 <= value <= top:
            self.refuse(name, "0 or more" if top == inf else f"between 0 and {top:g}")
        return value

    def count(self, name: str) -> int:
        """A whole number from 1 to `LARGEST_COUNT`."""
        value = self._number(name)
        if not 1 <= value <= LARGEST_COUNT or not value.is_integer():
            self.refuse(name, f"a whole number from 1 to {LARGEST_COUNT}")
        return int(value)

    def refuse(self, name: str, what: str) -> NoReturn:
        """Say what the value should have been."""
        msg = f"{self.where}: {name} must be {what}, is {self.fields[name]!r}"
        raise ProfileError(msg)

    def _number(self, name: str) -> float:
        return float(self.fields[name]) if _is_number(self.fields[name]) else self.refuse(name, "a number")


@dataclass(frozen=True, slots=True)
class Table:
    """A file's lines; none of them lacks a column."""

    source: str
    columns: Columns
    lines: tuple[Line, ...]

    def need(self, columns: Columns, what: str) -> None:
        """Refuse a table that lacks a column which `what` has."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            found = ", ".join(self.columns)
            msg = f"{self.source}: line 1: no column {', '.join(missing)}, which {what} has; columns are {found}"
            raise ProfileError(msg)


def read_table(text: str, source: str) -> Table:
    """The table of a CSV text with one header line, or with none where it is the artifact's (`BARE`)."""
    records = list(_records(text.removeprefix("\ufeff"), source))
    if not records:
        msg = f"{source}: line 1: the file is empty"
        raise ProfileError(msg)
    first = records[0][1]
    is_bare = len(first) == len(BARE) and all(_has_digits(value) for value in first[1:])
    columns = BARE if is_bare else tuple(_ALIASES.get(name, name) for name in first)
    lines = tuple(_line(columns, record, f"{source}: line {n}") for n, record in records[0 if is_bare else 1 :])
    if not lines:
        msg = f"{source}: line 1: a header and no rows"
        raise ProfileError(msg)
    return Table(source, columns, lines)


def _records(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields of what is not blank."""
    reader = csv.reader(StringIO(text, newline=""))
    try:
        for record in reader:
            if any(field.strip() for field in record):
                yield reader.line_num, [field.strip() for field in record]
    except csv.Error as error:
        msg = f"{source}: line {reader.line_num}: {error}"
        raise ProfileError(msg) from None


def _line(columns: Columns, record: list[str], where: str) -> Line:
    if len(record) != len(columns):
        msg = f"{where}: {len(record)} fields, but {len(columns)} columns: {', '.join(columns)}"
        raise ProfileError(msg)
    return Line(where, dict(zip(columns, record, strict=True)))


def _has_digits(text: str) -> bool:
    """Also where the number is a wrong one, so that a bad first row is not taken for a header."""
    return any(c.isdigit() for c in text) or text.lower() in {"nan", "inf"}


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
