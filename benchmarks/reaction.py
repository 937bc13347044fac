"""From a rate step to the new plan in force: on CPU workers behind a server, on emulated green contexts, by the artifact's rule.

`cpu`: two models of at least 100 requests/s on two cores whose rates cross, with spare models (nothing is to be built) and without
(new workers are). Instants are those of the server's log, against those at which the client changed its rates. `green`: simulated,
4 emulated H100s whose gpulets are there at once, planning taken as no time: what is left is seeing the step and the
batches that still run. `epochs`: the same by gpu-lets' constants, with their 10 s of building.
"""

import json
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from common import SHARED_DATA, SLOS_MS, record
from crossing import LAYERS, ROWS, SLO_MS, load
from rivals import NAMES, fleet_file, prepare, stepped

from gpulet.core.control import Controlled
from gpulet.core.messages import Adopt, Command, Event, Retire
from gpulet.drivers.sim import Changes, simulate
from gpulet.fleetfile import open_site
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.problems import load_profile, make_problem
from gpulet.replanning import Replanner, on_fewest
from gpulet.steering import make_core
from gpulet.units import MS, SECOND, Instant
from servers import Server, command, serve

PERIOD_S, CROSSINGS = 12.0, 6
BUSY = 1.15
STEP_AT_S = 6.0


def on_cpu(folder: Path, spare_mib: float) -> dict[str, Any]:
    """Seconds from each crossing to the plan in force; milliseconds from the last new worker to it."""
    site = open_site(folder / "profile.toml")
    a_core = ROWS * SECOND / load_profile(site).latency(NAMES[0], 1, ROWS)
    high, low = a_core * BUSY, a_core * BUSY / 4
    rates = [dict(zip(NAMES, pair, strict=True)) for pair in ((high, low), (low, high))]
    models = [Model(name, round(SLO_MS * MS)) for name in NAMES]
    arrivals = stepped(models, [(PERIOD_S, rates[n % 2]) for n in range(CROSSINGS + 1)], 3)
    path = fleet_file(folder, "live", rates[0], SLO_MS, {"mode": "auto", "spare_mib": spare_mib})
    with serve(path) as server:
        began = datetime.now()  # noqa: DTZ005 (as the log has it)
        outcome = uvloop.run(load(server.port, arrivals))
    total = outcome.report(arrivals.duration)["total"]
    crossings = [began + timedelta(seconds=PERIOD_S * n) for n in range(1, CROSSINGS + 1)]
    return {
        "rates": {"high": high, "low": low},
        **reactions(server, crossings),
        "attainment": total["attainment"],
        "lost": total["lost"],
    }


def reactions(server: Server, crossings: Sequence[datetime]) -> dict[str, Any]:
    """By the server's log, to its milliseconds."""
    in_force = [at(told) for told in server.all("plan_in_force")]
    ups = [at(told) for told in server.all("gpulet_up")]
    took, after = [], []
    for crossing in crossings:
        first = next((when for when in in_force if crossing < when < crossing + timedelta(seconds=PERIOD_S)), None)
        if first is None:
            continue
        took.append((first - crossing).total_seconds())
        new = [up for up in ups if crossing < up <= first]
        after += [(first - max(new)).total_seconds() * 1000] if new else []
    return {
        "reacted": f"{len(took)} of {len(crossings)}",
        "seconds": {"median": median(took), "most": max(took)},
        "ms_after_readiness": {"median": median(after), "most": max(after)} if after else "nothing was built",
    }


def at(told: dict[str, Any]) -> datetime:
    """When the log says it was."""
    return datetime.fromisoformat(told["time"].replace(",", "."))


class Steps:
    """When the first plan after the step came into force, and when the last gpulet of the old one had ended its batch."""

    def __init__(self) -> None:
        self.adopted: list[float] = []
        self.retired: list[float] = []

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """One step."""
        for told in commands:
            if isinstance(told, Adopt) and now / SECOND > STEP_AT_S:
                self.adopted.append(now / SECOND)
            elif isinstance(told, Retire) and self.adopted:
                self.retired.append(now / SECOND)


def simulated(folder: Path, control: str, seed: int, seconds: float) -> tuple[float, float, float]:
    """(to the plan in force, to the last old gpulet's end, the longest batch of the plan before) in seconds."""
    profile = json.dumps(str((SHARED_DATA / "rtx2080ti_latency.csv").resolve()))
    text = f'[[devices]]\nkind = "rtx2080ti"\ncount = 4\nexecutor = "simulated"\nprofile = {profile}\n'
    names = ("googlenet", "resnet50")
    for name in names:
        text += f'[[models]]\nname = "{name}"\nslo_ms = {SLOS_MS[name]}\nrate = 400\n'
    (folder / "sim.toml").write_text(f'{text}[control]\nmode = "auto"\nplan_ms = 0\nspare_mib = 0\n{control}')
    site = open_site(folder / "sim.toml")
    problem = make_problem(site, load_profile(site))
    plan = on_fewest(site.system, problem)
    assert isinstance(plan, Plan)
    core = make_core(site.config.control, site.system, problem, plan, site.limits)
    assert isinstance(core, Controlled)
    replanner = Replanner(site.system, site.limits)
    build = 10 * SECOND if "epochs" in control else 0
    changes = Changes(lambda asked: replanner.answer(core.problem, asked), 0, build)
    models = [problem.models[name] for name in names]
    before, then = dict.fromkeys(names, 400.0), {"googlenet": 1600.0, "resnet50": 400.0}
    arrivals = stepped(models, [(STEP_AT_S, before), (seconds, then)], seed)
    steps = Steps()
    longest = max(turn.latency for gpulet in plan.gpulets for turn in gpulet.turns)
    simulate(core, problem.profile, plan, arrivals, [steps.observe], changes=changes)
    assert steps.adopted, list(core.history)
    retired = [when for when in steps.retired if when < steps.adopted[0] + 1] or steps.adopted[:1]
    return steps.adopted[0] - STEP_AT_S, max(retired) - STEP_AT_S, longest / SECOND


def spread(values: Sequence[float], unit: float) -> dict[str, float]:
    """Median and largest."""
    return {"median": median(values) * unit, "most": max(values) * unit}


def main() -> None:
    """All of them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("what", help="of cpu, green, epochs; all if none", nargs="*")
    chosen = parser.parse_args().what or ["cpu", "green", "epochs"]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "green" in chosen:
            runs = [simulated(folder, "", seed, 4.0) for seed in range(20)]
            keys = ("in_force_ms", "last_batch_ended_ms", "longest_batch_ms")
            result["green"] = {
                key: spread(values, 1000) for key, values in zip(keys, zip(*runs, strict=True), strict=True)
            }
        if "epochs" in chosen:
            runs = [simulated(folder, 'rule = "epochs"\n', seed, 60.0) for seed in range(3)]
            result["epochs"] = {"in_force_s": spread([run[0] for run in runs], 1)}
        if "cpu" in chosen:
            prepare(folder, LAYERS)
            first = fleet_file(folder, "profile", dict.fromkeys(NAMES, 1.0), SLO_MS, {})
            subprocess.run(command("profile", first, "--budget", "0.5"), check=True, stdout=subprocess.DEVNULL)
            result["cpu, spare models"] = on_cpu(folder, 1024.0)
            result["cpu, workers to build"] = on_cpu(folder, 0.0)
    record("reaction", result)


if __name__ == "__main__":
    main()
