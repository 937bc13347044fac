"""Loads beside serving: a model of 100 MB is loaded and unloaded back to back while another is served at 70 % of its capacity.

Capacity is what one core leaves: it is measured, closed loop, through the whole server, while a process that does nothing but
compute holds the core that the served model's gpulet does not have. Then follow, without that process, as many seconds without
loads as with them, in pieces of a few seconds that alternate: a machine's speed is not the same from one ten seconds to the next,
and a queue at 70 % turns a tenth of it into half a p99. Pieces of a pair have the same arrivals. `own`: each model has a gpulet of
its own. `shared`: both are of one gpulet, so that each load and unload replaces the worker that serves. What must hold: attainment
of at least 99 % with loads, and a p99 of at most 1.5 times that of the run without, by the medians.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import uvloop
from common import record

from gpulet.core.counts import Counts
from gpulet.device import Size
from gpulet.fleetfile import open_site, usable_cores
from gpulet.httpwire import random_requests
from gpulet.loadgen import Stream, drive
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.problems import load_profile, make_problem
from gpulet.rows import fixed
from gpulet.serving import LiveServer, make_server
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, poisson
from servers import command, save_model

ROWS = 64
SERVED, HEAVY = Model("served", 250 * MS, max_batch=ROWS), "heavy"
SHARE = 0.7
CONNECTIONS = 4
PIECE_S = 5.0


def prepare(folder: Path) -> None:
    """Both models, a fleet of the machine's cores, and their profile."""
    save_model(folder / "models", SERVED.name, width=128, layers=100)
    save_model(folder / "models", HEAVY, width=1024, layers=25)
    sections = "".join(
        f'[[models]]\nname = "{name}"\nslo_ms = {slo}\nrate = 1.0\nmax_batch = {ROWS}\n'
        for name, slo in ((SERVED.name, SERVED.slo / MS), (HEAVY, 1000.0))
    )
    text = f'[[devices]]\nkind = "cpu"\ncores = {min(2, len(usable_cores()))}\n{sections}'
    (folder / "fleet.toml").write_text(
        text + '[server]\nrepository = "models"\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\n'
    )
    subprocess.run(command("profile", folder / "fleet.toml", "--budget", "0.3"), check=True, stdout=subprocess.DEVNULL)


def planned(folder: Path, layout: str) -> LiveServer:
    """A server of that layout; call it on the loop."""
    site = open_site(folder / "fleet.toml")
    problem = make_problem(site, load_profile(site))

    def turn(name: str) -> Turn:
        latency = problem.profile.latency(name, 1, ROWS)
        return Turn(name, ROWS, ROWS * SECOND / latency, latency)

    layouts = {"own": ((SERVED.name,), (HEAVY,)), "shared": ((SERVED.name, HEAVY),)}
    gpulets = [
        Gpulet(place, 0, Size(1, 100 / site.devices[0].kind.sms), place, SERVED.slo // 2, tuple(map(turn, names)))
        for place, names in enumerate(layouts[layout])
    ]
    return make_server(site, problem, Plan(site.devices, tuple(gpulets)))


async def serve(folder: Path, layout: str) -> None:
    """The server's process: tells its port, then loads and unloads from each line of its input to the next."""
    server = planned(folder, layout)
    await server.open()
    await server.ready()
    await server.residency.unload(HEAVY)
    gc.collect()
    gc.freeze()  # as `gpulet serve` does
    print(server.ends.http_port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        end = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
        took: list[float] = []
        while not end.done():
            before = monotonic()
            await server.residency.load(HEAVY)
            took.append(monotonic() - before)
            await server.residency.unload(HEAVY)
        print(json.dumps(took), flush=True)
    await server.close()


class Served:
    """The server's process, as its client sees it."""

    def __init__(self, folder: Path, layout: str) -> None:
        line = [sys.executable, __file__, "--serve", str(folder), "--layout", layout]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read())

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the server ended"
        return line

    def turn(self) -> None:
        """Begin to load, or end."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def loads(self) -> list[float]:
        """Seconds that each load since the last turn took."""
        self.turn()
        took: list[float] = json.loads(self._read())
        return took

    def close(self) -> None:
        """It ends when its input does."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


@contextmanager
def held(core: int) -> Iterator[None]:
    """That core is busy until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def capacity(port: int, seconds: float) -> float:
    """Requests a second, closed loop: the core always has the next one waiting."""
    request = (await random_requests("127.0.0.1", port, SERVED.name, (ROWS,)))[ROWS]
    ends = monotonic() + seconds
    return sum(await asyncio.gather(*(_call(port, request, ends) for _ in range(CONNECTIONS)))) / seconds


async def _call(port: int, request: bytes, ends: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    done = 0
    while monotonic() < ends:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        done += head.startswith(b"http/1.1 200")
    writer.close()
    return done


async def run(port: int, rate: float, seconds: float, seed: int) -> Counts:
    """Poisson arrivals; what the client saw."""
    requests = await random_requests("127.0.0.1", port, SERVED.name, (ROWS,))
    stream = Stream(SERVED.name, SERVED.slo, {rows: [request] for rows, request in requests.items()})
    rows = {SERVED.name: fixed(ROWS)}
    arrivals = drawn((SERVED,), {SERVED.name: rate}, round(seconds * SECOND), seed, poisson, rows)
    outcome = await drive("127.0.0.1", port, [stream], arrivals, connections=256)
    return outcome.counts[SERVED.name]


def alternate(served: Served, rate: float, seconds: float, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """That many seconds without loads and as many with them."""
    alone, beside, took = Counts(), Counts(), list[float]()
    pieces = max(1, round(seconds / PIECE_S))
    for piece in range(pieces):
        for is_beside in (False, True) if piece % 2 else (True, False):
            if is_beside:
                served.turn()
            counts = uvloop.run(run(served.port, rate, seconds / pieces, seed * pieces + piece))
            (beside if is_beside else alone).add(counts)
            took += served.loads() if is_beside else ()
    told = {"loads": len(took), "load_s": median(took)}
    return _row(alone, seconds), {**_row(beside, seconds), **told}


def _row(counts: Counts, seconds: float) -> dict[str, Any]:
    row = counts.report(round(seconds * SECOND))
    return {key: row[key] for key in ("attainment", "p50_ms", "p99_ms", "arrived", "served", "failed", "lost")}


def measure(folder: Path, layout: str, seconds: float, repeats: int) -> dict[str, Any]:
    """Alternating runs of one layout."""
    served = Served(folder, layout)
    most: list[float] = []
    try:
        uvloop.run(capacity(served.port, min(5.0, seconds)))  # caches and what is learnt of runs
        alone: list[dict[str, Any]] = []
        beside: list[dict[str, Any]] = []
        for seed in range(1, repeats + 1):
            with held(usable_cores()[-1]):
                most.append(uvloop.run(capacity(served.port, min(5.0, seconds))))
            without, with_loads = alternate(served, SHARE * most[-1], seconds, seed)
            print(json.dumps({"capacity": most[-1], "alone": without, "beside": with_loads}), flush=True)
            alone.append(without)
            beside.append(with_loads)
    finally:
        served.close()
    ratios = [b["p99_ms"] / a["p99_ms"] for a, b in zip(alone, beside, strict=True)]
    attained, ratio = median(b["attainment"] for b in beside), median(ratios)
    return {
        "layout": layout,
        "capacities": most,
        "rate": SHARE * median(most),
        "attainment": attained,
        "attainment_alone": median(a["attainment"] for a in alone),
        "p99_ms_alone": median(a["p99_ms"] for a in alone),
        "p99_ratio": ratio,
        "p99_ratios": ratios,
        "loads": [b["loads"] for b in beside],
        "load_s": median(b["load_s"] for b in beside),
        "failed": sum(b["failed"] + b["lost"] for b in beside),
        "holds": attained >= 0.99 and ratio <= 1.5,  # noqa: PLR2004 (what must hold)
    }


def main() -> None:
    """Both layouts, or one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layout", choices=("own", "shared", "both"), default="both")
    parser.add_argument("--quick", action="store_true", help="one short run that records nothing")
    parser.add_argument("--serve", type=Path, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve, options.layout))
        return
    seconds, repeats = (4.0, 1) if options.quick else (options.seconds, options.repeats)
    layouts = ("own", "shared") if options.layout == "both" else (options.layout,)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        prepare(Path(folder))
        results = {layout: measure(Path(folder), layout, seconds, repeats) for layout in layouts}
    if options.quick:
        print(json.dumps(results, indent=2))
    else:
        record("loads", results)


if __name__ == "__main__":
    main()
