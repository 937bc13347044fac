"""Recorded traces on four emulated devices: live control, the plan for how a trace begins, and one for its busiest minute.

Both traces are of other services and are used only as arrival patterns, scaled. `azure`: an hour of conversations (Splitwise,
ISCA 2024) in 175 s, each arrival eight times with a second's jitter, all of one model. `twitter`: five minutes of nine
classes (Proteus), three times as many, of four models. Simulated; traces and profile are beside the project (`../shared/data`).
"""

import json
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED_DATA, SLOS_MS, record
from fluctuating import Seen, serve

from gpulet.core.ports import Problem
from gpulet.fleetfile import Site, open_site
from gpulet.plan import Plan
from gpulet.problems import load_profile, make_problem
from gpulet.replanning import on_fewest
from gpulet.units import SECOND
from gpulet.workload import Arrivals

DEVICES = 4
COMPRESSED, COPIES, JITTER_S = 20, 8, 1.0
TIMES = 3
CLASSES: Mapping[str, tuple[str, ...]] = {
    "googlenet": ("mobilenet", "t5", "gpt2"),
    "resnet50": ("resnet", "efficientnet"),
    "ssd-mobilenetv1": ("yolo", "resnest"),
    "vgg16": ("bert", "densenet"),
}
"""Which classes of the trace arrive for which model of ours."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Instants in seconds by model, how long it is, and the piece that is a minute of the original."""

    times: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    seconds: float
    minute_s: float

    def rates(self, begin: float, end: float) -> dict[str, float]:
        """Requests/s by model between two instants."""
        return {name: float(((t >= begin) & (t < end)).sum()) / (end - begin) for name, t in self.times.items()}

    def busiest(self) -> dict[str, float]:
        """Each model's busiest minute."""
        minutes = np.arange(0, self.seconds - self.minute_s / 2, self.minute_s)
        every = [self.rates(begin, begin + self.minute_s) for begin in minutes]
        return {name: max(rates[name] for rates in every) for name in self.times}

    def arrivals(self, problem: Problem) -> Arrivals:
        """As the simulator takes them."""
        names = [model.name for model in problem.sources]
        which = np.concatenate([np.full(len(self.times[name]), place) for place, name in enumerate(names)])
        times = np.concatenate([self.times[name] for name in names])
        order = np.argsort(times, kind="stable")
        instants = np.rint(times[order] * SECOND).astype(np.int64)
        return Arrivals(
            problem.sources, instants, which[order], np.ones(len(order), np.int64), round(self.seconds * SECOND)
        )


def azure(seed: int) -> Trace:
    """One model."""
    random = np.random.default_rng(seed)
    lines = (SHARED_DATA / "traces" / "azure_conv.csv").read_text().split()[1:]
    once = np.array([float(line) for line in lines]) / COMPRESSED
    seconds = float(once[-1])
    times = np.repeat(once, COPIES) + random.uniform(-JITTER_S, JITTER_S, len(once) * COPIES)
    return Trace({"resnet50": np.sort(times[(times >= 0) & (times < seconds)])}, seconds, 60 / COMPRESSED)


def twitter(seed: int) -> Trace:
    """Four models."""
    random = np.random.default_rng(seed)
    head, *lines = (SHARED_DATA / "traces" / "twitter_normal300.csv").read_text().split()
    columns = head.split(",")[1:]
    counts = np.array([[int(cell) for cell in line.split(",")[1:]] for line in lines])
    times = {}
    for name, classes in CLASSES.items():
        each = counts[:, [columns.index(c) for c in classes]].sum(1) * TIMES
        times[name] = np.sort(np.repeat(np.arange(len(each)), each) + random.random(int(each.sum())))
    return Trace(times, float(len(lines)), 60.0)


def site_of(folder: Path, names: Mapping[str, object], mode: str) -> Site:
    """Four 2080 Ti with the paper's latencies."""
    profile = json.dumps(str((SHARED_DATA / "rtx2080ti_latency.csv").resolve()))
    text = f'[[devices]]\nkind = "rtx2080ti"\ncount = {DEVICES}\nexecutor = "simulated"\nprofile = {profile}\n'
    for name in names:
        text += f'[[models]]\nname = "{name}"\nslo_ms = {SLOS_MS[name]}\nrate = 1\n'
    path = folder / "fleet.toml"
    path.write_text(f'{text}[control]\nmode = "{mode}"\nfewest = true\n')
    return open_site(path)


def planned(site: Site, rates: Mapping[str, float]) -> tuple[Problem, Plan]:
    """On as few devices as will do."""
    problem = make_problem(site, load_profile(site))
    problem = replace(problem, demand=dict(rates), sent=dict(rates))
    outcome = on_fewest(site.system, problem)
    assert isinstance(outcome, Plan), outcome
    return problem, outcome


def told(seen: Seen, trace: Trace) -> dict[str, Any]:
    """Attainment, the worst 20 s, and what it took."""
    report = seen.report([{}], [0], trace.seconds)
    return {
        "attainment": 1 - report["violations"],
        "worst_window": report["worst_window"],
        "lost": seen.lost,
        "device_seconds": report["device_seconds"],
        "devices": sorted({count for _, count in seen.devices}),
        "changes": len(seen.devices) - 1,
    }


def compare(trace: Trace) -> dict[str, Any]:
    """The three, on the same arrivals."""
    first, busiest = trace.rates(0, trace.minute_s), trace.busiest()
    results: dict[str, Any] = {"seconds": trace.seconds, "requests": sum(map(len, trace.times.values()))}
    with tempfile.TemporaryDirectory() as name:
        for what, mode, rates in (("live", "auto", first), ("frozen", "off", first), ("peak", "off", busiest)):
            site = site_of(Path(name), trace.times, mode)
            problem, plan = planned(site, rates)
            results[what] = told(serve(site, problem, plan, trace.arrivals(problem)), trace)
    return results


def main() -> None:
    """Both traces."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not (SHARED_DATA / "traces").is_dir():
        sys.exit("skipped: the traces are not beside the project")
    record("traces", {"azure": compare(azure(options.seed)), "twitter": compare(twitter(options.seed))})


if __name__ == "__main__":
    main()
