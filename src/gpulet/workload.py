"""Arrival processes and trace rows to requests: seeded, pure, in order of time."""

import csv
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from gpulet.errors import ConfigError
from gpulet.model import Model
from gpulet.request import Request
from gpulet.rows import MOST_ROWS, SINGLE, RowDistribution
from gpulet.units import SECOND, Duration

Times = NDArray[np.int64]
"""Arrival instants, ascending."""
Draw = Callable[[np.random.Generator, float, Duration], Times]
"""(source of randomness, requests/s, duration) to arrival instants."""
_NO_ROWS: Mapping[str, RowDistribution] = {}


def poisson(random: np.random.Generator, rate: float, duration: Duration) -> Times:
    """Independent arrivals at `rate` per second."""
    return gamma(1.0)(random, rate, duration)


def gamma(cv: float) -> Draw:
    """Gamma-distributed gaps with coefficient of variation `cv`: 1 is Poisson, above 1 is bursty."""
    if not 0 < cv < float("inf"):
        msg = f"workload gamma: the coefficient of variation must be above 0, is {cv:g}"
        raise ConfigError(msg)
    shape = 1 / cv**2

    def draw(random: np.random.Generator, rate: float, duration: Duration) -> Times:
        times = np.empty(0)
        end = duration / SECOND
        while times.size == 0 or times[-1] < end:
            gaps = random.gamma(shape, 1 / (rate * shape), max(16, int(rate * end * 1.1)))
            times = np.concatenate([times, (times[-1] if times.size else 0.0) + np.cumsum(gaps)])
        return _nanoseconds(times[times < end])

    return draw


def mmpp(rate1: float, seconds1: float, rate2: float, seconds2: float) -> Draw:
    """Two Poisson states with exponential stays of the given means (seconds); the fleet's own rate is not used."""
    if min(rate1, rate2) < 0 or max(rate1, rate2) <= 0 or min(seconds1, seconds2) <= 0:
        msg = f"workload mmpp: rates and seconds must be above 0, are {rate1:g},{seconds1:g},{rate2:g},{seconds2:g}"
        raise ConfigError(msg)

    def draw(random: np.random.Generator, rate: float, duration: Duration) -> Times:  # noqa: ARG001
        pieces: list[NDArray[np.float64]] = []
        now, end, state = 0.0, duration / SECOND, 0
        while now < end:
            stay = min(random.exponential((seconds1, seconds2)[state]), end - now)
            count = random.poisson((rate1, rate2)[state] * stay)
            pieces.append(now + np.sort(random.random(count)) * stay)
            now, state = now + stay, 1 - state
        return _nanoseconds(np.concatenate(pieces))

    return draw


def _nanoseconds(seconds: NDArray[np.float64]) -> Times:
    return np.rint(seconds * SECOND).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A workload drawn beforehand: instants with the model (index into `models`) and rows of each."""

    models: tuple[Model, ...]
    times: Times
    which: NDArray[np.int64]
    rows: NDArray[np.int64]
    duration: Duration

    def __len__(self) -> int:
        return len(self.times)

    def rows_of(self, model: str) -> list[int]:
        """Every number of rows that requests of a model bring, ascending."""
        names = [m.name for m in self.models]
        found: list[int] = np.unique(self.rows[self.which == names.index(model)]).tolist()
        return found

    def requests(self) -> Iterator[Request]:
        """The requests in order of arrival, numbered from 1, due one SLO later."""
        models = [(m.name, m.slo) for m in self.models]
        drawn = zip(self.times.tolist(), self.which.tolist(), self.rows.tolist(), strict=True)
        for number, (time, which, rows) in enumerate(drawn, start=1):
            name, slo = models[which]
            yield Request(number, name, time, time + slo, rows)


def drawn(
    models: Sequence[Model],
    rates: Mapping[str, float],
    duration: Duration,
    seed: int,
    draw: Draw,
    rows: Mapping[str, RowDistribution] = _NO_ROWS,
) -> Arrivals:
    """Requests of every model at its rate (requests/s), with `rows` each. Each model has a random stream of its own,
    spawned from `seed`; its instants do not depend on its rows.
    """
    streams = np.random.SeedSequence(seed).spawn(len(models))
    times: list[Times] = []
    brought: list[NDArray[np.int64]] = []
    for model, stream in zip(models, streams, strict=True):
        random, rate = np.random.default_rng(stream), rates.get(model.name, 0.0)
        times.append(draw(random, rate, duration) if rate > 0 else np.empty(0, np.int64))
        brought.append(draw_rows(random, rows.get(model.name, SINGLE), times[-1].size))
    return _merged(models, times, brought, duration)


def draw_rows(random: np.random.Generator, rows: RowDistribution, count: int) -> NDArray[np.int64]:
    """The rows of `count` requests, each drawn by itself."""
    if rows.weights[-1] == 1:
        return np.full(count, rows.largest, np.int64)
    return random.choice(np.arange(1, rows.largest + 1), count, p=rows.weights)


def _merged(models: Sequence[Model], times: Sequence[Times], rows: Sequence[Times], duration: Duration) -> Arrivals:
    which = np.concatenate([np.full(t.size, i, np.int64) for i, t in enumerate(times)])
    joined = np.concatenate(times)
    order = np.argsort(joined, kind="stable")
    return Arrivals(tuple(models), joined[order], which[order], np.concatenate(rows)[order], duration)


def parse_trace(
    text: str,
    models: Sequence[Model],
    duration: Duration,
    seed: int,
    source: str,
    rows: Mapping[str, RowDistribution] = _NO_ROWS,
) -> Arrivals:
    """A trace: `arrival_s[,model][,rows]`; `second,MODEL,...` with counts spread over each second at random; or
    `second,model,rate`, Poisson arrivals at each rate until the model's next one.

    Without a model column every arrival is of the fleet's first model; without a rows column each request draws its own
    from `rows`. Arrivals after `duration` are left out. Raises `ConfigError` that names source, line and value.
    """
    lines = csv.reader(StringIO(text))
    header = next(lines, [])
    trace = _Trace(source, header, lines, models, duration, seed, rows)
    if header[:1] == ["arrival_s"]:
        return _listed(trace)
    if header == ["second", "model", "rate"]:
        return _rated(trace)
    if header[:1] == ["second"]:
        return _counted(trace)
    msg = f"{source}: line 1: columns {','.join(header)}; a trace starts with arrival_s or second"
    raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a trace, by column; `where` says which line."""

    cells: Mapping[str, str]
    where: str

    def model(self, fleet: Container[str], default: str = "") -> str:
        """Whose arrivals these are; raises `ConfigError` for a model that is not in the fleet."""
        name = self.cells.get("model", default)
        if name not in fleet:
            msg = f"{self.where}: model {name!r} is not in the fleet"
            raise ConfigError(msg)
        return name

    def number(self, column: str) -> float:
        """A number of 0 or more; raises `ConfigError` for anything else."""
        try:
            value = float(self.cells[column])
        except (KeyError, ValueError):
            msg = f"{self.where}: {column} must be a number, is {self.cells.get(column)!r}"
            raise ConfigError(msg) from None
        if not 0 <= value < float("inf"):
            msg = f"{self.where}: {column} must not be below 0, is {value:g}"
            raise ConfigError(msg)
        return value

    def rows(self) -> int:
        """The rows of a request, 1 where a short line leaves them out."""
        rows = int(self.number("rows")) if "rows" in self.cells else 1
        if not 1 <= rows <= MOST_ROWS:
            msg = f"{self.where}: rows must be 1 to {MOST_ROWS}, is {rows}"
            raise ConfigError(msg)
        return rows


@dataclass(frozen=True, slots=True)
class _Trace:
    """A trace that is being read: its lines once, whose arrivals they are, the seed of what they leave open, and the
    distributions of rows where they say nothing of rows.
    """

    source: str
    header: Sequence[str]
    lines: Iterator[list[str]]
    models: Sequence[Model]
    duration: Duration
    seed: int
    distributions: Mapping[str, RowDistribution]

    def rows(self) -> Iterator[_Row]:
        for number, line in enumerate(self.lines, start=2):
            yield _Row(dict(zip(self.header, line, strict=False)), f"{self.source}: line {number}")

    def arrivals(self, times: Sequence[Times], random: np.random.Generator) -> Arrivals:
        """The instants of each model, with rows drawn after all of them: they do not depend on the rows."""
        drawn_rows = [
            draw_rows(random, self.distributions.get(model.name, SINGLE), t.size)
            for model, t in zip(self.models, times, strict=True)
        ]
        return _merged(self.models, times, drawn_rows, self.duration)


def _listed(trace: _Trace) -> Arrivals:
    places = {model.name: place for place, model in enumerate(trace.models)}
    has_rows = "rows" in trace.header
    times: list[list[int]] = [[] for _ in trace.models]
    rows: list[list[int]] = [[] for _ in trace.models]
    for row in trace.rows():
        place = places[row.model(places, trace.models[0].name)]
        time = round(row.number("arrival_s") * SECOND)
        if time < trace.duration:
            times[place].append(time)
            if has_rows:
                rows[place].append(row.rows())
    joined, sizes = ([np.array(column, np.int64) for column in columns] for columns in (times, rows))
    if has_rows:
        return _merged(trace.models, joined, sizes, trace.duration)
    return trace.arrivals(joined, np.random.default_rng(trace.seed))


def _counted(trace: _Trace) -> Arrivals:
    random = np.random.default_rng(trace.seed)
    counted = {model.name for model in trace.models} & set(trace.header)
    if not counted:
        msg = f"{trace.source}: no column is one of the fleet's models"
        raise ConfigError(msg)
    times: list[list[Times]] = [[np.empty(0, np.int64)] for _ in trace.models]
    for row in islice(trace.rows(), -(-trace.duration // SECOND)):
        second = row.number("second")
        for place, model in enumerate(trace.models):
            if model.name in counted:
                count = int(row.number(model.name))
                times[place].append(_nanoseconds(second + np.sort(random.random(count))))
    return _joined(trace, times, random)


def _rated(trace: _Trace) -> Arrivals:
    """The last rate of a model holds as long as the one before it."""
    steps: dict[str, list[tuple[float, float]]] = {model.name: [] for model in trace.models}
    for row in trace.rows():
        steps[row.model(steps)].append((row.number("second"), row.number("rate")))
    random = np.random.default_rng(trace.seed)
    times: list[list[Times]] = [[np.empty(0, np.int64)] for _ in trace.models]
    for pieces, model in zip(times, trace.models, strict=True):
        for start, end, rate in _periods(steps[model.name]):
            count = random.poisson(rate * (end - start))
            pieces.append(_nanoseconds(start + np.sort(random.random(count)) * (end - start)))
    return _joined(trace, times, random)


def _joined(trace: _Trace, times: Sequence[Sequence[Times]], random: np.random.Generator) -> Arrivals:
    """Each model's instants from their pieces; what is beyond the duration is left out."""
    joined = [np.concatenate(pieces) for pieces in times]
    return trace.arrivals([t[t < trace.duration] for t in joined], random)


def _periods(steps: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """(start, end, rate) of each step, in order of time."""
    ordered = sorted(steps)
    length = 1.0
    for (start, rate), following in zip_longest(ordered, ordered[1:]):
        length = following[0] - start if following else length
        yield start, start + length, rate


def parse_process(text: str) -> Draw:
    """`poisson`, `gamma:CV` or `mmpp:RATE1,SECONDS1,RATE2,SECONDS2`; raises `ConfigError` that shows these."""
    name, _, arguments = text.partition(":")
    try:
        numbers = [float(a) for a in arguments.split(",")] if arguments else []
        match name, numbers:
            case "poisson", []:
                return poisson
            case "gamma", [cv]:
                return gamma(cv)
            case "mmpp", [rate1, seconds1, rate2, seconds2]:
                return mmpp(rate1, seconds1, rate2, seconds2)
            case _:
                pass
    except ValueError:
        pass
    msg = f"unknown workload {text!r}; known are poisson, gamma:CV, mmpp:RATE1,SECONDS1,RATE2,SECONDS2, trace:FILE"
    raise ConfigError(msg)
