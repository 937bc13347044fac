"""Figure 14's kind of load on eight emulated devices: live control uses as few as will do, and nobody is late for it.

`simulated`: the whole curve, 3,200 s of it. `live`: the curve alone compressed 20 times, 160 s on the simulated executor behind a
real server, latencies and objectives as they are. What must hold: never more than one device above the fewest that hold the rates
of that moment, violations below 1 % in every 20 s outside the step itself, nothing lost. The curve and the profile are beside the
project (`../shared/data`).
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import uvloop
from common import SHARED_DATA, record

from gpulet.core.control import Controlled
from gpulet.core.messages import Adopt, Answer, Arrived, Command, Drop, Event, Fail, Reject
from gpulet.core.ports import Problem
from gpulet.drivers.sim import Changes, simulate
from gpulet.fleetfile import Site, open_site
from gpulet.httpwire import random_requests
from gpulet.loadgen import Outcome, Stream, drive
from gpulet.plan import Plan
from gpulet.problems import load_profile, make_problem
from gpulet.replanning import Replanner, on_fewest
from gpulet.request import Request
from gpulet.steering import make_core, spares_of
from gpulet.units import MS, SECOND, Instant
from gpulet.workload import Arrivals, parse_trace
from servers import Server, command

MODELS = {"googlenet": 66, "resnet50": 108, "vgg16": 142}
DEVICES, STEP_S, SPEED, WINDOW_S = 8, 20, 20, 20
PLAN_MS = BUILD_MS = 500
"""What planning and building take by the virtual clock: planning as it is measured here, building a guess for cold graphs."""
ONE_PCT = 0.01
Curve = list[dict[str, float]]


def fleet_file(folder: Path, rates: dict[str, float]) -> Path:
    """Eight 2080 Ti with the paper's latencies, planned for the first step."""
    profile = json.dumps(str((SHARED_DATA / "rtx2080ti_latency.csv").resolve()))
    text = f'[[devices]]\nkind = "rtx2080ti"\ncount = {DEVICES}\nexecutor = "simulated"\nprofile = {profile}\n'
    for name, slo_ms in MODELS.items():
        text += f'[[models]]\nname = "{name}"\nslo_ms = {slo_ms}\nrate = {rates[name]}\n'
    text += '[server]\nhttp_port = 0\ngrpc = false\nmetrics_port = 0\nlog_format = "json"\n'
    text += f'[control]\nmode = "auto"\nfewest = true\nplan_ms = {PLAN_MS}\nbuild_ms = {BUILD_MS}\n'
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def steps(curve: str) -> Curve:
    """The rates of each 20 s."""
    found: dict[float, dict[str, float]] = {}
    for line in curve.splitlines()[1:]:
        second, model, rate = line.split(",")
        found.setdefault(float(second), {})[model] = float(rate)
    return [found[second] for second in sorted(found)]


def fewest(site: Site, curve: Curve) -> list[int]:
    """Devices that our planner needs where it knows the rates of each step exactly."""
    problem = make_problem(site, load_profile(site))
    known: dict[tuple[float, ...], int] = {}
    for rates in curve:
        key = tuple(rates.values())
        if key not in known:
            outcome = on_fewest(site.system, replace(problem, demand=rates, sent=rates))
            assert isinstance(outcome, Plan), outcome
            known[key] = outcome.devices_used
    return [known[tuple(rates.values())] for rates in curve]


@dataclass(slots=True)
class Seen:
    """Arrivals and misses by window of 20 s, devices in use from each second on, what was never answered."""

    windows: dict[int, list[int]] = field(default_factory=dict)
    devices: list[tuple[float, int]] = field(default_factory=list)
    lost: int = 0

    def add(self, second: float, *, is_good: bool) -> None:
        """One request that was due then."""
        counts = self.windows.setdefault(int(second // WINDOW_S), [0, 0])
        counts[0] += 1
        counts[1] += not is_good

    def report(self, curve: Curve, needed: Sequence[int], step_s: float) -> dict[str, Any]:
        """What must hold, in numbers. A plan may lag behind a step that needs fewer devices for as long as a window."""
        shares = {window: missed / arrived for window, (arrived, missed) in sorted(self.windows.items())}
        seconds = [second for second, _ in self.devices]
        above = []
        for place, least in enumerate(needed):
            middle = (place + 0.5) * step_s
            above.append(self.devices[bisect_right(seconds, middle) - 1][1] - least)
        whole = sum(arrived for arrived, _ in self.windows.values())
        ends = step_s * len(curve)
        spans = zip(self.devices, [*self.devices[1:], (ends, 0)], strict=True)
        return {
            "arrived": whole,
            "violations": sum(missed for _, missed in self.windows.values()) / whole,
            "windows": len(shares),
            "windows_above_1_pct": {
                window * WINDOW_S: round(share, 4) for window, share in shares.items() if share >= ONE_PCT
            },
            "worst_window": max(shares.values()),
            "lost": self.lost,
            "devices": self.devices,
            "devices_needed": sorted(set(needed)),
            "most_above_the_fewest": max(above),
            "steps_above_the_fewest": sum(extra > 0 for extra in above),
            "steps_below_the_fewest": sum(extra < 0 for extra in above),
            "devices_at_the_ends": [self.devices[0][1], self.devices[-1][1]],
            "device_seconds": sum((end - begin) * count for (begin, count), (end, _) in spans),
        }


class Watcher:
    """Sees every step of a simulation."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._open: dict[int, Request] = {}

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Fold it into what was seen."""
        self._open |= {event.request.id: event.request for event in events if isinstance(event, Arrived)}
        for told in commands:
            match told:
                case Answer():
                    for number in told.requests:
                        request = self._open.pop(number)
                        self._seen.add(request.arrival / SECOND, is_good=now <= request.deadline)
                case Reject() | Drop() | Fail():
                    self._seen.add(self._open.pop(told.request).arrival / SECOND, is_good=False)
                case Adopt():
                    self._seen.devices.append((now / SECOND, told.plan.devices_used))
                case _:
                    pass
        self._seen.lost = len(self._open)


def serve(site: Site, problem: Problem, plan: Plan, arrivals: Arrivals) -> Seen:
    """By the virtual clock; with live control where the fleet file has it on."""
    plan = spares_of(site).added(plan, problem.models)
    core = make_core(site.config.control, site.system, problem, plan, site.limits)
    changes = None
    if isinstance(core, Controlled):
        replanner = Replanner(site.system, site.limits, spares_of(site))
        changes = Changes(lambda asked: replanner.answer(core.problem, asked), PLAN_MS * MS, BUILD_MS * MS)
    seen = Seen(devices=[(0.0, plan.devices_used)])
    simulate(core, problem.profile, plan, arrivals, [Watcher(seen).observe], changes=changes)
    return seen


def simulated(site: Site, text: str, curve: Curve, seed: int) -> Seen:
    """All 3,200 s."""
    problem = make_problem(site, load_profile(site))
    plan = on_fewest(site.system, problem)
    assert isinstance(plan, Plan)
    arrivals = parse_trace(text, problem.sources, len(curve) * STEP_S * SECOND, seed, "curve")
    return serve(site, problem, plan, arrivals)


def live(path: Path, text: str, curve: Curve, seed: int) -> Seen:
    """The curve in 160 s against a server."""
    head, *lines = text.splitlines()
    quick = [head, *(f"{float(second) / SPEED},{rest}" for second, rest in (line.split(",", 1) for line in lines))]
    site = open_site(path)
    problem = make_problem(site, load_profile(site))
    duration = len(curve) * STEP_S * SECOND // SPEED
    arrivals = parse_trace("\n".join(quick) + "\n", problem.sources, duration, seed, "curve")
    server = Server(subprocess.Popen(command("serve", path), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        began = datetime.now()  # noqa: DTZ005 (as the log has it)
        outcome = uvloop.run(_drive(server.port, arrivals))
        server.stop()
        server.process.wait(30)
    finally:
        server.close()
    first = server.all("planned")[0]["devices"]
    seen = Seen(devices=[(0.0, first)], lost=outcome.report(duration)["total"]["lost"])
    for due, _, is_good in outcome.events:
        seen.add(due / SECOND, is_good=is_good)
    for told in server.all("plan_in_force"):
        at = datetime.fromisoformat(told["time"].replace(",", "."))
        seen.devices.append(((at - began).total_seconds(), told["devices"]))
    return seen


async def _drive(port: int, arrivals: Arrivals) -> Outcome:
    streams = []
    for model in arrivals.models:
        (request,) = (await random_requests("127.0.0.1", port, model.name, (1,))).values()
        streams.append(Stream(model.name, model.slo, {1: [request]}))
    return await drive("127.0.0.1", port, streams, arrivals, connections=256)


def main() -> None:
    """Both, or one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("simulated", "live", "both"), nargs="?", default="both")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    if not (SHARED_DATA / "fig14_like_rates.csv").exists():
        sys.exit("skipped: fig14_like_rates.csv is not beside the project")
    text = (SHARED_DATA / "fig14_like_rates.csv").read_text()
    curve = steps(text)
    result: dict[str, Any] = {"seed": options.seed}
    with tempfile.TemporaryDirectory() as folder:
        path = fleet_file(Path(folder), curve[0])
        site = open_site(path)
        needed = fewest(site, curve)
        if options.what != "live":
            result["simulated"] = simulated(site, text, curve, options.seed).report(curve, needed, STEP_S)
        if options.what != "simulated":
            result["live"] = live(path, text, curve, options.seed).report(curve, needed, STEP_S / SPEED)
    record("fluctuating", result)


if __name__ == "__main__":
    main()
