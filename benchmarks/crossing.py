"""Two models on this machine's cores whose rates cross every 20 s: live control, the frozen plan, and an even static split.

Both cost the same per row. At each crossing the rate of one falls to a quarter while that of the other rises fourfold. The
busy one needs more than the core that an even split gives it. What must hold with live control: 97 % of all requests in time,
nothing lost, no wrong answer. All three serve the same arrivals, one after the other.
"""

import json
import subprocess
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import uvloop
from common import record
from rivals import NAMES, fleet_file, prepare, stepped, stream

from gpulet.fleetfile import open_site
from gpulet.loadgen import Outcome, drive
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.planfile import to_doc, to_json
from gpulet.problems import load_profile, make_problem
from gpulet.units import MS, SECOND
from gpulet.workload import Arrivals
from servers import command, serve

LAYERS = 36
SLO_MS = 60.0
BUSY = 1.15
"""Of a core, what the busy model takes; the other takes a quarter of that."""
ROWS = 4


def even_split(path: Path) -> Plan:
    """A core for each."""
    site = open_site(path)
    profile = make_problem(site, load_profile(site)).profile
    size = site.devices[0].sizes()[0]
    gpulets = []
    for place, name in enumerate(NAMES):
        latency = profile.latency(name, 1, ROWS)
        turn = Turn(name, ROWS, ROWS * SECOND / latency, latency)
        gpulets.append(Gpulet(place, 0, size, place, latency, (turn,)))
    return Plan(site.devices, tuple(gpulets))


async def load(port: int, arrivals: Arrivals) -> Outcome:
    """Both models from one client."""
    streams = [stream(model, seed) for seed, model in enumerate(arrivals.models)]
    return await drive("127.0.0.1", port, streams, arrivals, connections=256)


def run(path: Path, arrivals: Arrivals, *more: str) -> dict[str, Any]:
    """One run of a fresh server; what the client saw, and what the server decided."""
    with serve(path, *more) as server:
        outcome = uvloop.run(load(server.port, arrivals))
    report = outcome.report(arrivals.duration)
    rows = {**report["models"], "total": report["total"]}
    return {
        **{
            name: {key: row[key] for key in ("arrived", "attainment", "p50_ms", "p99_ms", "lost", "failed")}
            for name, row in rows.items()
        },
        "wrong": sum(report["wrong"].values()),
        "errors": report["errors"],
        "decisions": [{key: e[key] for key in ("time", "seen", "considered", "chosen")} for e in server.all("plan")],
        "client_cpu_us": report["client_cpu_us_per_request"],
    }


def main() -> None:
    """All three, on the same arrivals."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--period", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, LAYERS)
        first = fleet_file(folder, "profile", dict.fromkeys(NAMES, 1.0), SLO_MS, {})
        subprocess.run(command("profile", first, "--budget", "0.5"), check=True, stdout=subprocess.DEVNULL)
        site = open_site(first)
        a_core = ROWS * SECOND / load_profile(site).latency(NAMES[0], 1, ROWS)
        high, low = round(a_core * BUSY), round(a_core * BUSY / 4)
        models = [Model(name, round(SLO_MS * MS)) for name in NAMES]
        rates = [dict(zip(NAMES, pair, strict=True)) for pair in ((high, low), (low, high))]
        steps = [(options.period, rates[n % 2]) for n in range(round(options.seconds / options.period))]
        arrivals = stepped(models, steps, options.seed)
        live = fleet_file(folder, "live", rates[0], SLO_MS, {"mode": "auto"})
        frozen = fleet_file(folder, "frozen", rates[0], SLO_MS, {"mode": "off"})
        split = folder / "split.json"
        split.write_text(json.dumps(to_json(to_doc(even_split(frozen), "gpulet", 0))))
        result = {
            "rates": {"high": high, "low": low},
            "live": run(live, arrivals),
            "frozen": run(frozen, arrivals),
            "even split": run(frozen, arrivals, "--plan", str(split)),
        }
    record("crossing", result)


if __name__ == "__main__":
    main()
