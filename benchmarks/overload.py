"""The demo's two real models on carved cores, the heavier one at three times its capacity.

Capacity is measured first, by load at the plan's own throughput; then the same for 3x. What must hold: goodput at 3x is at
least 90 % of goodput at capacity, refusals are answered within 20 ms (p99), and the light model does not suffer.
`--kill` also kills the heavier model's worker in the middle of a run at half its capacity.
"""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from argparse import ArgumentParser
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop
from common import HERE, record

from gpulet.httpwire import binary_request
from gpulet.loadgen import Check, Outcome, Stream, drive
from gpulet.model import Model
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, poisson
from servers import Server, command

DIGITS = HERE.parent / "examples" / "digits"
LIGHT, HEAVY = Model("digits-small", 50 * MS), Model("digits-large", 250 * MS)
LIGHT_RATE = 100.0


def fleet_file(folder: Path) -> Path:
    """The demo's fleet on free ports."""
    repository = json.dumps(str((DIGITS / "models").resolve()))
    ports = 'http_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"'
    text = (DIGITS / "gpulet.toml").read_text().replace('repository = "models"', f"repository = {repository}\n{ports}")
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def stream(model: Model) -> Stream:
    """Held-out images of one model, every answer checked against the first answer to the same image."""
    images = np.load(DIGITS / "heldout.npz")["images"]
    described = [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}]
    requests = [binary_request("localhost", model.name, described, [image.tobytes()]) for image in images]
    return Stream(model.name, model.slo, {1: requests}, same_answer())


def same_answer() -> Check:
    """One image must always give one digit."""
    known: dict[int, int] = {}

    def check(index: int, body: bytes, json_bytes: int) -> bool:
        digit = int(np.frombuffer(body, np.float32, 10, json_bytes).argmax())
        return known.setdefault(index, digit) == digit

    return check


async def load(port: int, heavy_rate: float, seconds: float, seed: int, victim: int = 0) -> Outcome:
    """Both models; `victim` is killed half-way."""
    if victim:
        asyncio.get_running_loop().call_later(seconds / 2, os.kill, victim, signal.SIGKILL)
    rates = {LIGHT.name: LIGHT_RATE, HEAVY.name: heavy_rate}
    arrivals = drawn((LIGHT, HEAVY), rates, round(seconds * SECOND), seed, poisson)
    return await drive("127.0.0.1", port, [stream(LIGHT), stream(HEAVY)], arrivals, connections=256)


def run(server: Server, rate: float, seconds: float, repeats: int) -> dict[str, Any]:
    """Medians of one heavy rate."""
    outcomes = [uvloop.run(load(server.port, rate, seconds, seed)) for seed in range(1, repeats + 1)]
    reports = [outcome.report(round(seconds * SECOND)) for outcome in outcomes]
    return {
        "rate": rate,
        "goodput": median([r["models"][HEAVY.name]["goodput"] for r in reports]),
        "late": [r["models"][HEAVY.name]["late"] for r in reports],
        "expired": [r["models"][HEAVY.name]["expired"] for r in reports],
        "rejected": [r["models"][HEAVY.name]["rejected"] for r in reports],
        "refused_p99_ms": median([r["refused_p99_ms"] for r in reports]),
        "light_attainment": [r["models"][LIGHT.name]["attainment"] for r in reports],
        "wrong": sum(sum(r["wrong"].values()) for r in reports),
        "lost": sum(r["total"]["lost"] for r in reports),
    }


def outage(server: Server) -> float:
    """Seconds from the death of a worker to its replacement being loaded and warm, by the server's log."""
    died, up = (
        datetime.fromisoformat(server.all(name)[-1]["time"].replace(",", ".")) for name in ("worker_died", "gpulet_up")
    )
    return (up - died).total_seconds()


def main() -> None:
    """Capacity, 3x, and the kill."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = fleet_file(Path(folder))
        subprocess.run(command("profile", path), check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(command("plan", path, "--json"), check=True, capture_output=True, text=True)
        capacity = json.loads(done.stdout)["models"][HEAVY.name]["throughput"]
        server = Server(subprocess.Popen(command("serve", path), stderr=subprocess.PIPE, text=True))
        server.wait_for("ready")
        try:
            at, over = (run(server, capacity * f, options.seconds, options.repeats) for f in (1, 3))
            result = {"at capacity": at, "at 3x": over, "share_of_goodput": over["goodput"] / at["goodput"]}
            if options.kill:
                victim = next(w["pid"] for w in server.workers.values() if HEAVY.name in w["models"])
                outcome = uvloop.run(load(server.port, capacity / 2, options.seconds, 9, victim))
                report = outcome.report(round(options.seconds * SECOND))
                result["kill"] = {
                    "back_after_s": outage(server),
                    "wrong": sum(report["wrong"].values()),
                    "attainment": report["models"][HEAVY.name]["attainment"],
                    "errors": report["errors"],
                    "lost": report["total"]["lost"],
                }
            server.stop()
            server.process.wait(30)
        finally:
            server.close()
    record("overload", result)


if __name__ == "__main__":
    main()
