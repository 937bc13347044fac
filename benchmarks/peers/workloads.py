"""W1, W2 and W4: what is asked of every server, piece by piece.

A fresh server for every piece; gpulet and the peer it is compared with take turns.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from peers import raw
from peers.ledger import Ledger, Result
from peers.live import Live
from peers.onnxfiles import IDENTITY, LENET, RESNET50, Network
from peers.ours import Rates, fleet_file, planned_file, served_by_us
from peers.search import highest_level, largest_rate, settled_level
from peers.table import PEERS
from peers.theirs import Shape, served_by_echo, served_by_peer

OURS, ECHO, FIRST = "gpulet", "grpcio echo", "mosec"
BATCHED = "mosec batched"
IN_FLIGHT = 64
ENOUGH = 0.99
LEVELS = 8
FULL_MINUTES = 45
LIGHT_RATE, HEAVY_RATE = 250.0, 5.0
SINGLE = Shape(batch=32)
CUT, WHOLE = Shape(way="cut"), Shape(way="whole")
SHAPES = (SINGLE, Shape(32, 1, 2), Shape(32, 2, 1), Shape(32, 2, 2))
CHIEF = 2
"""So many peers, the first of the table, are probed in every shape before the rest is probed in one."""
_NEARLY = 0.97
_HOPELESS = 0.95
_RETRIES = 12
_MOST = 512
_PLANNED_RATE = 1000.0
_START_S = 12.0
_LOADING_S = 6.0
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds, and how often: `runs` of W1 and W4, `turns` of W2 against the first peer."""

    runs: int = 3
    turns: int = 5
    w1_s: float = 4.0
    probe_s: float = 3.0
    confirm_s: float = 6.0
    precision: float = 0.05
    level_probe_s: float = 12.0
    level_s: float = 60.0
    raw_s: float = 6.0
    levels: int = LEVELS
    profile_s: float = 0.5

    def within(self, minutes: float) -> "Pace":
        """Shorter levels where there is less time than all of it takes."""
        share = min(1.0, minutes / FULL_MINUTES)
        return replace(
            self, level_s=max(10.0, self.level_s * share), level_probe_s=max(6.0, self.level_probe_s * share)
        )


QUICK = Pace(1, 1, 1.0, 1.0, 1.0, 0.3, 2.0, 3.0, 1.0, 2, 0.1)


@dataclass(frozen=True, slots=True)
class Bench:
    """A run: the peers it may start, its pace, where its results and its files go."""

    peers: Sequence[str]
    pace: Pace
    ledger: Ledger
    folder: Path

    def w1(self) -> None:
        """Identity of 64 bytes, 64 in flight: every server once, then those that thresholds are about again."""
        compared = [OURS, FIRST, BATCHED, ECHO]
        rest = [peer for peer in self.peers if peer != FIRST]
        for run in range(self.pace.runs):
            for name in compared:
                self._identity(name, run)
            for name in rest if not run else ():
                self._identity(name, run)
        for run in range(1, self.pace.runs):
            for name in rest:
                self._identity(name, run)

    def _identity(self, name: str, run: int) -> None:
        if name in {OURS, ECHO} or self._peer(name) in self.peers:
            expected = _START_S + 2 * self.pace.w1_s
            self.ledger.once(f"W1/{name}/{run}", expected, lambda: self._busy(name))

    @staticmethod
    def _peer(name: str) -> str:
        return FIRST if name == BATCHED else name

    def _busy(self, name: str) -> Result:
        shape = SINGLE if name == BATCHED else Shape()
        with self.served(name, [IDENTITY], shape) as live:
            result: Result = {"start_s": live.start_s}
            job: dict[str, Any] = {"in_flight": IN_FLIGHT, "seconds": self.pace.w1_s}
            if live.ports["http"]:
                warm = {**job, "mode": "http", "request": live.saved(IDENTITY)[0]}
                live.load({**warm, "seconds": self.pace.w1_s / 4})
                result |= _named("http", live.load(warm))
            if live.ports["grpc"]:
                warm = {**job, "mode": "grpc", "request": live.saved_message(IDENTITY)}
                live.load({**warm, "seconds": self.pace.w1_s / 4})
                result |= _named("grpc", live.load(warm))
            return {**result, "memory_mib": live.running.memory_mib()}

    def served(self, name: str, networks: Sequence[Network], shape: Shape) -> AbstractContextManager[Live]:
        """A server for one piece; gpulet's fleet is profiled and planned once for each set of models."""
        folder = self.folder / "-".join([self._peer(name), *(n.name for n in networks)])
        folder.mkdir(exist_ok=True)
        if name == ECHO:
            return served_by_echo(folder)
        if name != OURS:
            return served_by_peer(self._peer(name), networks, shape, folder)
        way = shape.way or CUT.way
        fleet = folder / f"{way}.toml"
        if not planned_file(fleet).exists():
            fleet = fleet_file(networks, _planned(networks), way, folder, self.pace.profile_s)
        return served_by_us(networks, fleet)

    def w2(self) -> None:
        """LeNet, batches of 32: the largest Poisson rate of which 99 % are answered within 25 ms."""
        guesses = {OURS: 8000.0, **{name: PEERS[name].guess for name in self.peers}}
        for turn in range(self.pace.turns):
            for name in [OURS, *(p for p in self.peers if p == FIRST)]:
                guesses[name] = self._rate(name, turn, guesses[name])
        for name in self.peers:
            if name != FIRST:
                self._rate(name, 0, guesses[name])

    def _rate(self, name: str, turn: int, guess: float) -> float:
        """Where the next search for it begins."""
        expected = _START_S + 8 * self.pace.probe_s + self.pace.confirm_s
        found = self.ledger.once(f"W2/{name}/{turn}", expected, lambda: self._searched(name, guess))
        return float(found.get("rate", 0.0)) or guess

    def _searched(self, name: str, guess: float) -> Result:
        probes: list[tuple[float, float]] = []
        with self.served(name, [LENET], SINGLE) as live:

            def asked(rate: float, seconds: float) -> Result:
                seen = live.load(self._open(live, {LENET: rate}, seconds))
                light = seen["models"][LENET.name]
                probes.append((rate, light["attainment"]))
                if light["attainment"] < ENOUGH:
                    live.settle(LENET)
                return {**{k: v for k, v in seen.items() if k != "models"}, **light}

            asked(guess / 4, self.pace.probe_s / 2)
            rate = largest_rate(
                lambda rate: bool(asked(rate, self.pace.probe_s)["attainment"] >= ENOUGH), guess, self.pace.precision
            )
            for _ in range(_RETRIES):
                seen = asked(rate, self.pace.confirm_s) if rate else {"attainment": 0.0}
                if seen["attainment"] >= ENOUGH:
                    return {"rate": rate, **seen, "probes": probes}
                rate *= 1 - self.pace.precision
        return {"rate": 0.0, **seen, "probes": probes}

    def _open(self, live: Live, rates: dict[Network, float], seconds: float, seed: int = 1) -> dict[str, Any]:
        """A job for the load generator: connections enough for twice what may be under way within the objective, and for a
        heavy model beyond capacity, so that a server's own queue is the one that fills.
        """
        streams = [
            {
                "model": network.name,
                "slo_ms": network.slo_ms,
                "rate": rate,
                "requests": live.saved(network),
                "connections": _MOST if network.is_heavy else round(max(32, min(_MOST, 0.002 * network.slo_ms * rate))),
            }
            for network, rate in rates.items()
        ]
        return {"mode": "open", "streams": streams, "seconds": seconds, "seed": seed}

    def w4(self) -> None:
        """LeNet and ResNet-50, levels 1 to 8: probed, confirmed for gpulet and the best, beyond capacity; then the rest."""
        chief, rest = self.peers[:CHIEF], self.peers[CHIEF:]
        self.raw(0)
        ways = {way: self._probed(OURS, way, 3) for way in (CUT, WHOLE)}
        ours = max(ways, key=ways.__getitem__)
        probed = {(name, shape): self._probed(name, shape, 2) for name in chief for shape in SHAPES}
        probed |= {(name, SINGLE): self._probed(name, SINGLE, 1) for name in rest}
        self._settled(OURS, ours, ways[ours], self.pace.runs)
        best = max(probed, key=probed.__getitem__, default=None)
        if best:
            self._settled(*best, probed[best], self.pace.runs)
        self._beyond(OURS, ours, self.pace.runs)
        if best:
            # Its own time-out set to the heavy objective is the best that a FIFO server can do about overload.
            self._beyond(*best)
            self._beyond(best[0], replace(best[1], deadline_ms=round(RESNET50.slo_ms)))
        self.raw(1)
        for name in self.peers:
            self._beyond(name, SINGLE)
            self._settled(name, SINGLE, probed[name, SINGLE], 1)
        self.raw(2)
        for shape in SHAPES[1:]:
            for name in rest:
                self._probed(name, shape, 1)

    def raw(self, turn: int) -> None:
        """ONNX Runtime alone, before, between and after; then beside gpulet, which serves the light model at the highest level."""
        path, seconds = RESNET50.save(self.folder / "raw"), self.pace.raw_s
        self.ledger.once(f"raw/{turn}", 4 * seconds, lambda: raw.rates(path, seconds))
        self.ledger.once(f"beside/{turn}", _START_S + 4 * seconds, lambda: self._beside(path, seconds))

    def _beside(self, path: Path, seconds: float) -> Result:
        """As nice as a gpulet of the heavy model is."""
        with self.served(OURS, [LENET, RESNET50], WHOLE) as live, ThreadPoolExecutor(1) as pool:
            found = pool.submit(raw.rates, path, seconds, _NICENESS)
            live.load(self._open(live, {LENET: LIGHT_RATE * LEVELS}, 2 * seconds + _LOADING_S))
            return found.result()

    def _beyond(self, name: str, shape: Shape, runs: int = 1) -> None:
        """Level 8: 40 heavy requests a second, more than the machine can run."""
        for run in range(runs):
            self._level(name, shape, LEVELS, f"L{LEVELS}/{run}", self.pace.level_s)

    def _probed(self, name: str, shape: Shape, guess: int) -> int:
        """About the highest level, by short runs."""

        def holds(level: int) -> bool:
            seen = self._level(name, shape, level, f"probe{level}", self.pace.level_probe_s)
            return _least(seen) >= _NEARLY

        return highest_level(holds, guess, self.pace.levels)

    def _settled(self, name: str, shape: Shape, start: int, runs: int) -> int:
        """The highest level at which the median attainment of both models is enough, by whole runs."""

        def holds(level: int) -> bool:
            seen = []
            for run in range(runs):
                seen.append(_least(self._level(name, shape, level, f"L{level}/{run}", self.pace.level_s)))
                if seen[-1] < _HOPELESS:
                    return False
            return median(seen) >= ENOUGH

        return settled_level(holds, start, self.pace.levels)

    def _level(self, name: str, shape: Shape, level: int, key: str, seconds: float) -> Result:
        expected = _START_S + seconds + (10 if level == LEVELS else 0)
        seed = int(key.rpartition("/")[2]) + 1 if "/" in key else 1
        piece = f"W4/{name}/{shape.name}/{key}"
        return self.ledger.once(piece, expected, lambda: self._mixed(name, shape, level, seconds, seed))

    def _mixed(self, name: str, shape: Shape, level: int, seconds: float, seed: int) -> Result:
        with self.served(name, [LENET, RESNET50], shape) as live:
            live.load(self._open(live, {LENET: LIGHT_RATE / 2, RESNET50: HEAVY_RATE / 2}, min(2.0, seconds / 2)))
            rates = {LENET: LIGHT_RATE * level, RESNET50: HEAVY_RATE * level}
            seen = live.load(self._open(live, rates, seconds, seed))
        light, heavy = seen["models"][LENET.name], seen["models"][RESNET50.name]
        shown = {"light": light["attainment"], "heavy": heavy["attainment"], "heavy_goodput": heavy["goodput"]}
        return {"level": level, "load_s": seconds, **shown, **seen}


def _named(prefix: str, result: Result) -> Result:
    return {f"{prefix}_{key}": value for key, value in result.items()}


def _planned(networks: Sequence[Network]) -> Rates:
    """Rates to plan for: of two models, those of a level."""
    if len(networks) == 1:
        return lambda level: {networks[0].name: _PLANNED_RATE * level}
    return lambda level: {LENET.name: LIGHT_RATE * level, RESNET50.name: HEAVY_RATE * level}


def _least(seen: Result) -> float:
    """The attainment of the model that did worse; 0 where it was not measured."""
    return min(seen.get("light", 0.0), seen.get("heavy", 0.0))
