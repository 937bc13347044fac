"""The final table: medians with their spread, ratios within the run, and the thresholds they are held against."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from peers.ledger import Ledger, Result
from peers.table import QUOTED

_ENOUGH = 0.99
_NEARLY = 0.97
_BEYOND = 8
WAYS = ("cut", "whole")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and what it is the median of."""

    median: float
    least: float
    most: float
    runs: int

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.least)}-{_short(self.most)}, {self.runs} runs)"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"  # noqa: PLR2004 (digits)


def spread(values: Iterable[float]) -> Spread | None:
    """None of nothing."""
    found = sorted(values)
    return Spread(median(found), found[0], found[-1], len(found)) if found else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of "Must show": measured against its bound. `measured` None: not in this run."""

    text: str
    measured: float | None
    bound: float
    is_least: bool = False

    @property
    def verdict(self) -> str:
        """`holds`, `FAILS` or `not measured`."""
        if self.measured is None:
            return "not measured"
        holds = self.measured >= self.bound if self.is_least else self.measured <= self.bound
        return "holds" if holds else "FAILS"

    def __str__(self) -> str:
        shown = "-" if self.measured is None else f"{self.measured:.3f}"
        return f"{self.verdict:13} {shown:>9} {'>=' if self.is_least else '<='} {self.bound:<6g} {self.text}"


class Report:
    """Questions to a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def value(self, key: str, *piece: str) -> Spread | None:
        """A number of all runs of a piece."""
        return spread(r[key] for r in self._ledger.named(*piece) if key in r)

    def ratio(self, key: str, ours: tuple[str, str], theirs: tuple[str, str], their_key: str = "") -> float | None:
        """Median over median."""
        above, below = self.value(key, *ours), self.value(their_key or key, *theirs)
        return above.median / below.median if above and below and below.median else None

    def level(self, name: str, shape: str) -> tuple[int, str] | None:
        """The highest level at which both attain enough, by whole runs where there are any, else by probes."""
        for kind, enough in (("L", _ENOUGH), ("probe", _NEARLY)):
            tried = {r["level"] for r in self._ledger.named("W4", name, shape) if "level" in r}
            seen = {level: self._attained(name, shape, f"{kind}{level}") for level in tried}
            known = {level: least for level, least in seen.items() if least is not None}
            # A run beyond capacity alone says nothing of the levels below it.
            if any(level != _BEYOND or least >= enough for level, least in known.items()):
                return max((level for level, least in known.items() if least >= enough), default=0), kind
        return (0, "probe") if self._ledger.named("W4", name, shape) else None

    def _attained(self, name: str, shape: str, which: str) -> float | None:
        runs = self._ledger.named("W4", name, shape, which)
        return median([min(r["light"], r["heavy"]) for r in runs]) if runs else None


def claims(report: Report, peers: Iterable[str], shapes: Iterable[str]) -> list[Claim]:
    """What the issue says must be shown, as far as it is about peers."""
    single, *_ = shapes = list(shapes)
    levels = {(p, s): found[0] for p in peers for s in shapes if (found := report.level(p, s))}
    ways = {way: found[0] for way in WAYS if (found := report.level("gpulet", way))}
    way = max(ways, key=ways.__getitem__, default=WAYS[0])
    level = ways.get(way)
    best = max(levels.values(), default=None)
    light = report.value("light", "W4", "gpulet", way, "L8")
    heavy, capacity = report.value("heavy_goodput", "W4", "gpulet", way, "L8"), report.value("per_second", "raw")
    left = report.value("per_second", "beside")
    share = heavy.median / capacity.median if heavy and capacity else None
    of_left = heavy.median / left.median if heavy and left else None
    lines = [
        Claim("W1 HTTP: CPU per request / mosec's", report.ratio("http_server_cpu_us", _W1, ("W1", "mosec")), 0.45),
        Claim(
            "W1 HTTP: CPU per request, us (stretch: Triton's, quoted)",
            _median(report, "http"),
            QUOTED["W1 HTTP, CPU us"],
        ),
        Claim("W1 gRPC: CPU per request / a bare grpcio echo's", report.ratio("grpc_server_cpu_us", _W1, _ECHO), 1.35),
        Claim("W2: largest rate / mosec's", report.ratio("rate", _W2, ("W2", "mosec")), 0.95, is_least=True),
        Claim("W2: CPU per request / mosec's", report.ratio("server_cpu_us", _W2, ("W2", "mosec")), 1.0),
        Claim("W4: level - the best peer's in its best shape", _less(level, best), 0, is_least=True),
    ]
    for peer in peers:
        if (peer, single) in levels:
            twice = _less(level, 2 * levels[peer, single])
            lines.append(Claim(f"W4: level - twice {peer}'s, one instance of one thread", twice, 0, is_least=True))
    lines.append(
        Claim("W4 level 8: attainment of the light model", light.median if light else None, 0.99, is_least=True)
    )
    lines.append(Claim("W4 level 8: heavy goodput / ONNX Runtime's alone", share, 0.85, is_least=True))
    beside = "W4 level 8: heavy goodput / ONNX Runtime's beside the same light load (not asked for)"
    lines.append(Claim(beside, of_left, 0.85, is_least=True))
    return lines


_W1, _W2, _ECHO = ("W1", "gpulet"), ("W2", "gpulet"), ("W1", "grpcio echo")


def _median(report: Report, wire: str) -> float | None:
    found = report.value(f"{wire}_server_cpu_us", *_W1)
    return found.median if found else None


def _less(ours: int | None, theirs: int | None) -> float | None:
    return None if ours is None or theirs is None else float(ours - theirs)


def table(head: list[str], rows: list[list[object]]) -> str:
    """Columns as wide as what stands in them; no row of which only the first cell is known."""
    rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    lines = [head, *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def sections(report: Report, names: list[str], shapes: list[str]) -> list[str]:
    """W1, W2 and W4 as tables: medians (least-most, runs); of what was not measured no line."""

    def ratio(workload: str, key: str, name: str) -> str | None:
        found = report.ratio(key, (workload, "gpulet"), (workload, name))
        return None if found is None else f"{found:.2f}"

    w1 = [[n, *(report.value(k, "W1", n) for k in _W1_KEYS), *(ratio("W1", k, n) for k in _W1_CPU)] for n in names]
    w2 = [[n, *(report.value(k, "W2", n) for k in _W2_KEYS), *(ratio("W2", k, n) for k in _W2_KEYS[:2])] for n in names]
    w4 = [[f"{n} {s}", *_level_row(report, n, s)] for n in names for s in [*WAYS, *shapes]]
    return [
        "W1 identity 64 B, 64 in flight; CPU in us of the server per answer, of the load generator (gen.)",
        table(["server", *_W1_HEAD, "ours/its HTTP CPU", "ours/its gRPC CPU"], w1),
        "W2 LeNet, Poisson, 99 % answered within 25 ms",
        table(["server", "largest rate/s", "CPU us", "gen. us", "p99 ms", "ours/its rate", "ours/its CPU"], w2),
        "W4 LeNet 250 x level (25 ms) + ResNet-50 5 x level (400 ms): highest level at >= 99 % both; level 8",
        table(["server, inst. x threads", "level", "by", "L8 light", "L8 heavy", "L8 heavy goodput/s"], w4),
        (
            f"ONNX Runtime alone: {report.value('per_second', 'raw')} ResNet-50/s; "
            f"beside gpulet with the light load of level 8: {report.value('per_second', 'beside')}"
        ),
        f"quoted, not measured here (NVIDIA Triton's own C++ server, specs/data_plane): {QUOTED}",
    ]


_W1_HEAD = ("HTTP CPU", "HTTP/s", "gen.", "gRPC CPU", "gRPC/s", "gen.", "MiB", "start s")
_W1_CPU = ("http_server_cpu_us", "grpc_server_cpu_us")
_W1_KEYS = (
    *(f"http_{key}" for key in ("server_cpu_us", "per_s", "client_cpu_us")),
    *(f"grpc_{key}" for key in ("server_cpu_us", "per_s", "client_cpu_us")),
    "memory_mib",
    "start_s",
)
_W2_KEYS = ("rate", "server_cpu_us", "client_cpu_us", "p99_ms")


def _level_row(report: Report, name: str, shape: str) -> list[object]:
    level, kind = report.level(name, shape) or (None, None)
    beyond = [report.value(key, "W4", name, shape, "L8") for key in ("light", "heavy", "heavy_goodput")]
    return [level, {"L": "whole runs", "probe": "probes"}.get(kind) if kind else None, *beyond]


def summary(report: Report, names: list[str], shapes: list[str], found: list[Claim]) -> dict[str, Any]:
    """The run as one result line."""

    def medians(workload: str, keys: Iterable[str]) -> Mapping[str, Result]:
        rows = {n: {k: s for k in keys if (s := report.value(k, workload, n))} for n in names}
        return {n: {k: [s.median, s.least, s.most, s.runs] for k, s in row.items()} for n, row in rows.items() if row}

    levels = {f"{n} {s}": report.level(n, s) for n in names for s in [*WAYS, *shapes]}
    return {
        "W1": medians("W1", _W1_KEYS),
        "W2": medians("W2", _W2_KEYS),
        "W4": {key: level for key, level in levels.items() if level},
        "claims": {claim.text: [claim.measured, claim.verdict] for claim in found},
        "quoted": QUOTED,
    }


Say = Callable[[str], None]


def show(report: Report, names: list[str], shapes: list[str], found: list[Claim], say: Say = print) -> None:
    """All of it."""
    for part in sections(report, names, shapes):
        say(part + "\n")
    for claim in found:
        say(str(claim))
