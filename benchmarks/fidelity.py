"""Does the simulator say what the server does? GoogLeNet and ResNet-50 on two emulated RTX 2080 Ti.

The same plan and the same arrivals (one seed a repeat) through `gpulet simulate` and through `gpulet serve` on the
simulated executor with `gpulet bench` as its client, at 50 % and 80 % of what the planner accepts. Medians over the
repeats of attainment and of the latency percentiles over all requests, and their differences.

`--seconds 60 --repeats 3` is what is quoted; shorter runs are for a look.
"""

import json
import subprocess
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from statistics import median
from typing import Any

from common import SHARED_DATA, SLOS_MS, paper_profile, record

from servers import Server, command

MODELS = ("googlenet", "resnet50")
LOADS = (0.5, 0.8)
BASE_RATE = 100.0
MANY = ("--connections", 512)
"""By Little's law 70 requests are under way at 80 % load, and ten times that in a burst: none may wait for a connection."""


def fleet_file(folder: Path, rates: dict[str, float]) -> Path:
    """Two devices, two models at these rates."""
    profile = json.dumps(str(SHARED_DATA / "rtx2080ti_latency.csv"))
    text = f'[[devices]]\nkind = "rtx2080ti"\ncount = 2\nexecutor = "simulated"\nprofile = {profile}\n'
    for name, rate in rates.items():
        text += f'[[models]]\nname = "{name}"\nslo_ms = {SLOS_MS[name]}\nrate = {rate}\n'
    text += '[server]\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\n'
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def answer(*arguments: object) -> Any:
    """A command's JSON."""
    done = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def one(path: Path, plan: Path, rates: dict[str, float], seconds: float, seed: int) -> tuple[Any, Any]:
    """The totals of one simulated and one served run of the same arrivals."""
    simulated = answer("simulate", path, "--plan", plan, "--duration", seconds, "--seed", seed)
    server = Server(subprocess.Popen(command("serve", path, "--plan", plan), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        loads = [part for name, rate in rates.items() for part in ("--load", f"{name}:{rate}:{SLOS_MS[name]}")]
        served = answer("bench", f"127.0.0.1:{server.port}", *loads, "--duration", seconds, "--seed", seed, *MANY)
        server.stop()
        server.process.wait(30)
    finally:
        server.close()
    return simulated["total"], served["total"]


def compare(folder: Path, load: float, seconds: float, repeats: int) -> dict[str, Any]:
    """One load: medians of both, and how far the simulator is off."""
    factor = answer("capacity", fleet_file(folder, dict.fromkeys(MODELS, BASE_RATE)), "--by", "plan")["factor"]
    rates = dict.fromkeys(MODELS, round(BASE_RATE * factor * load, 1))
    path, plan = fleet_file(folder, rates), folder / "plan.json"
    plan.write_text(json.dumps(answer("plan", path)))
    runs = [one(path, plan, rates, seconds, seed) for seed in range(1, repeats + 1)]
    both = {
        key: tuple(median(float(run[side][key]) for run in runs) for side in (0, 1))
        for key in ("attainment", "p50_ms", "p95_ms", "p99_ms")
    }
    return {
        "rates": rates,
        "requests": [run[1]["arrived"] for run in runs],
        "simulated": {key: pair[0] for key, pair in both.items()},
        "served": {key: pair[1] for key, pair in both.items()},
        "attainment_points": 100 * abs(both["attainment"][0] - both["attainment"][1]),
        "p50_off_pct": off(*both["p50_ms"]),
        "p95_off_pct": off(*both["p95_ms"]),
        "p99_off_pct": off(*both["p99_ms"]),
    }


def off(simulated: float, served: float) -> float:
    """The served figure against the simulated one, in percent."""
    return 100 * (served / simulated - 1)


def main() -> None:
    """Both loads."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    paper_profile()
    with tempfile.TemporaryDirectory() as folder:
        loads = {f"{load:.0%}": compare(Path(folder), load, options.seconds, options.repeats) for load in LOADS}
    record("fidelity", {"seconds": options.seconds, "repeats": options.repeats, **loads})


if __name__ == "__main__":
    main()
