"""Profile, plan, carve, serve and break two real models on this machine, with real images and checked answers.

Ends 0 when no request was lost, every model answered at least 95 % of its images right, and at least 99 % of its
requests were answered within the SLO outside the three seconds after a worker was killed.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gpulet.config import read_fleet_file
from gpulet.httpwire import binary_request
from gpulet.loadgen import Check, Outcome, Stream, drive
from gpulet.model import Model
from gpulet.units import SECOND, from_ms
from gpulet.workload import drawn, poisson

HERE = Path(__file__).parent
DIGITS = HERE / "digits"
OUT = Path(os.path.relpath(HERE.parent)) / "out"
SECONDS = 20
KILL_AT = 10
RECOVERY = 3
LEAST_ACCURACY = 0.95
LEAST_ATTAINMENT = 0.99
out = Console()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is up: its port, and each model's worker process."""

    port: int
    workers: dict[str, int]


def gpulet(*arguments: str) -> None:
    """Run a command as a user would."""
    out.rule(f"gpulet {' '.join(arguments)}")
    subprocess.run([sys.executable, "-m", "gpulet.cli", *arguments], check=True)  # noqa: S603 (our own command)


@contextmanager
def served() -> Iterator[Running]:
    """`gpulet serve examples/digits` on free ports, until it is ready; SIGTERM at the end."""
    out.rule("gpulet serve examples/digits")
    command = [sys.executable, "-m", "gpulet.cli", "serve", str(OUT / "demo.toml")]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 (our own command)
    assert server.stderr is not None
    workers: dict[str, int] = {}
    try:
        for line in server.stderr:
            event = json.loads(line)
            out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
            if event["event"] == "gpulet_up":
                workers |= dict.fromkeys(event["models"], event["pid"])
            if event["event"] == "ready":
                yield Running(int(event["url"].rpartition(":")[2]), workers)
                break
        else:
            sys.exit("the server did not become ready")
    finally:
        server.send_signal(signal.SIGTERM)
        for line in server.stderr:
            out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
        server.wait(30)


def write_fleet_file() -> None:
    """The example's fleet file, on free ports and with logs for machines."""
    text = (DIGITS / "gpulet.toml").read_text()
    repository = json.dumps(str((DIGITS / "models").resolve()))
    server = f'repository = {repository}\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\njournal = "demo.journal"'
    (OUT / "demo.toml").write_text(text.replace('repository = "models"', server))


def checks_digit(labels: NDArray[np.uint8]) -> Check:
    """The largest of ten logits must be the digit on the image."""

    def check(index: int, body: bytes, json_bytes: int) -> bool:
        return int(np.frombuffer(body, np.float32, 10, json_bytes).argmax()) == int(labels[index])

    return check


async def drive_and_break(running: Running, models: tuple[Model, ...], rates: dict[str, float]) -> Outcome:
    """Both models at their rates with held-out images; half-way the heavier one's worker is killed."""
    held_out = np.load(DIGITS / "heldout.npz")
    images, labels = held_out["images"], held_out["labels"]
    described = [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}]
    streams = [
        Stream(
            m.name, m.slo, {1: [binary_request("localhost", m.name, described, [i.tobytes()]) for i in images]}, check
        )
        for m, check in zip(models, [checks_digit(labels)] * len(models), strict=True)
    ]
    victim = running.workers[models[-1].name]
    asyncio.get_running_loop().call_later(KILL_AT, os.kill, victim, signal.SIGKILL)
    arrivals = drawn(models, rates, SECONDS * SECOND, 1, poisson)
    return await drive("127.0.0.1", running.port, streams, arrivals)


def attainment_outside(outcome: Outcome, model: str) -> float:
    """Share of requests within the SLO, the three seconds after the kill left out."""
    start, end = KILL_AT * SECOND, (KILL_AT + RECOVERY) * SECOND
    good = [is_good for due, name, is_good in outcome.events if name == model and not start <= due < end]
    return sum(good) / len(good)


def verdict(outcome: Outcome, models: tuple[Model, ...], rates: dict[str, float]) -> bool:
    """Print what each model got, and whether that is enough."""
    report = outcome.report(SECONDS * SECOND)
    table = Table(title=f"{SECONDS} s of real images; a worker was killed after {KILL_AT} s")
    for name in ("", *(model.name for model in models)):
        table.add_column(name, justify="right")
    rows = [report["models"][m.name] for m in models]
    accuracy = [1 - outcome.wrong[m.name] / max(1, r["served"]) for m, r in zip(models, rows, strict=True)]
    outside = [attainment_outside(outcome, m.name) for m in models]
    table.add_row("rate", *(f"{rates[m.name]:.0f}/s" for m in models))
    table.add_row("attainment", *(f"{r['attainment']:.2%}" for r in rows))
    table.add_row(f"outside the {RECOVERY} s after the kill", *(f"{a:.2%}" for a in outside))
    table.add_row("goodput", *(f"{r['goodput']:.1f}/s" for r in rows))
    table.add_row("p50", *(f"{r['p50_ms']:.2f} ms" for r in rows))
    table.add_row("p99", *(f"{r['p99_ms']:.2f} ms" for r in rows))
    table.add_row("SLO", *(f"{m.slo / 1e6:.0f} ms" for m in models))
    table.add_row("accuracy", *(f"{a:.2%}" for a in accuracy))
    table.add_row("lost", *(f"{r['lost']}" for r in rows))
    out.print(table)
    for error, count in outcome.errors.items():
        out.print(f"{count} x {error}", markup=False)
    is_lossless = not report["total"]["lost"]
    return is_lossless and min(accuracy) >= LEAST_ACCURACY and min(outside) >= LEAST_ATTAINMENT


def main() -> int:
    """The whole story; the exit code."""
    OUT.mkdir(exist_ok=True)
    write_fleet_file()
    sections = read_fleet_file(OUT / "demo.toml").models
    models = tuple(Model(s.name, from_ms(s.slo_ms)) for s in sections)
    rates = {s.name: s.rate for s in sections}
    gpulet("profile", str(OUT / "demo.toml"))
    gpulet("plan", str(OUT / "demo.toml"), "--picture", str(OUT / "plan.png"))
    with served() as running:
        out.print(f"driving {', '.join(rates)} for {SECONDS} s")
        outcome = uvloop.run(drive_and_break(running, models, rates))
    is_good = verdict(outcome, models, rates)
    gpulet("replay", str(OUT / "demo.journal"))
    out.print(f"picture: {OUT / 'plan.png'}; keep it up with: gpulet serve examples/digits")
    out.print("all good" if is_good else "NOT good: see above")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
