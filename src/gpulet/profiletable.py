"""Profiles as CSV tables: ours, and the plain form of gpu-lets' figure 3."""

import csv
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from math import inf

from gpulet.errors import ProfileError
from gpulet.profile import Point, Profile
from gpulet.units import PLAIN, from_ms

COLUMNS = (
    *("model", "shape", "size", "batch", "mean_ms", "p95_ms", "p99_ms", "samples", "last"),
    *("host_ms", "l2_pct", "dram_pct", "processes", "busy_pct"),
)
"""Our own table. Imported tables may give `share_pct` for `size` and `latency_ms` for the three statistics."""


def parse_profile(text: str, sms_of: Callable[[float], int], source: str) -> Profile:
    """Read a CSV table: ours (`COLUMNS`), or `model,share_pct,batch,latency_ms` as in gpu-lets' figure 3.

    `sms_of` turns a share in percent into SMs. Raises `ProfileError` that names `source`, the line and the value.
    """
    reader = csv.DictReader(StringIO(text))
    header = reader.fieldnames or ()
    missing = {"model", "batch"} - set(header)
    if missing or not {"size", "share_pct"} & set(header) or not {"mean_ms", "latency_ms"} & set(header):
        msg = f"{source}: line 1: columns {', '.join(header) or '(none)'}; needed are "
        raise ProfileError(msg + "model, size, batch, mean_ms or model, share_pct, batch, latency_ms")
    points = tuple(_parse_point(row, sms_of, f"{source}: line {i}") for i, row in enumerate(reader, start=2))
    if not points:
        msg = f"{source}: no rows"
        raise ProfileError(msg)
    return Profile(points)


def _parse_point(row: Mapping[str, str], sms_of: Callable[[float], int], where: str) -> Point:
    mean = _number(row, "mean_ms" if "mean_ms" in row else "latency_ms", where)
    share = row.get("share_pct")
    size = sms_of(_number(row, "share_pct", where, most=100)) if share else int(_number(row, "size", where))
    p95, p99 = (from_ms(_number(row, name, where)) if row.get(name) else from_ms(mean) for name in ("p95_ms", "p99_ms"))
    samples = int(row.get("samples") or 0)
    shape = row.get("shape") or PLAIN
    is_last = row.get("last") == "1"
    rows = int(_number(row, "batch", where))
    host = from_ms(_within(row, "host_ms", mean, where))
    l2, dram, busy = (_within(row, name, 100, where) / 100 for name in ("l2_pct", "dram_pct", "busy_pct"))
    used = (host, l2, dram, _processes(row, where), busy)
    return Point(row["model"], size, rows, from_ms(mean), p95, p99, samples, shape, is_last, *used)


def _processes(row: Mapping[str, str], where: str) -> int:
    """A column that may be absent or empty, which is 1."""
    text = row.get("processes") or "1"
    if not text.isdecimal() or int(text) < 1:
        msg = f"{where}: processes must be a whole number from 1, is {text!r}"
        raise ProfileError(msg)
    return int(text)


def _within(row: Mapping[str, str], name: str, whole: float, where: str) -> float:
    """A column that may be absent or empty, which is 0; what is there lies between 0 and `whole`."""
    text = row.get(name) or "0"
    try:
        value = float(text)
    except ValueError:
        msg = f"{where}: {name} must be a number, is {text!r}"
        raise ProfileError(msg) from None
    if not 0 <= value <= whole:
        msg = f"{where}: {name} must be between 0 and {whole:g}, is {value:g}"
        raise ProfileError(msg)
    return value


def _number(row: Mapping[str, str], name: str, where: str, most: float = inf) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        msg = f"{where}: {name} must be a number, is {row.get(name)!r}"
        raise ProfileError(msg) from None
    if not 0 < value < inf:
        msg = f"{where}: {name} must be above 0, is {value:g}"
        raise ProfileError(msg)
    if value > most:
        msg = f"{where}: {name} must be at most {most:g}, is {value:g}"
        raise ProfileError(msg)
    return value


def format_profile(points: Iterable[Point]) -> str:
    """Our own table as CSV text, times in ms."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for p in points:
        *times, host = (f"{t / 1e6:.6f}" for t in (p.mean, p.p95, p.p99, p.host))
        used = (f"{100 * part:.6g}" for part in (p.l2, p.dram))
        last = int(p.is_last)
        writer.writerow(
            (p.model, p.shape, p.size, p.rows, *times, p.samples, last, host, *used, p.processes, f"{100 * p.busy:.6g}")
        )
    return out.getvalue()
