"""What the benchmarks share: the four-model fleet of gpu-lets' figure 3, result lines, the machine."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpulet.core.fleet import Fleet
from gpulet.core.ports import Changed, Decision, Dispatcher, Place, Problem, Run
from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.dispatchers.dutycycle import DutyCycle
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profile import Profile
from gpulet.profiletable import parse_profile
from gpulet.request import Request
from gpulet.units import MS, SECOND, Duration, Instant

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # servers.py: the live tests' servers
SHARED_DATA = HERE.parents[1] / "shared" / "data"
RESULTS = HERE / "results"
KIND = find_kind("rtx2080ti")
SLOS_MS = {"googlenet": 66, "resnet50": 108, "ssd-mobilenetv1": 202, "vgg16": 142}
MODELS = {name: Model(name, slo * MS) for name, slo in SLOS_MS.items()}
LOAD = 0.6


def paper_profile() -> Profile:
    """Figure 3 of gpu-lets, which is not ours to ship; ends the benchmark where it is absent."""
    path = SHARED_DATA / "rtx2080ti_latency.csv"
    if not path.exists():
        sys.exit(f"skipped: {path.name} (third-party profile tables) is not beside the project")
    return parse_profile(path.read_text(), lambda share: mps_size(KIND, share).sms, path.name)


def half_devices(gpulets: int, batch: int, requests: int) -> tuple[Problem, Plan, Duration]:
    """Each device cut into two halves, every model on as many of them; `batch` is planned at most.

    The demand is 60 % of what the plan carries, the duration that of so many `requests`.
    """
    profile = paper_profile()
    half = mps_size(KIND, 50)
    devices = tuple(Device(d, KIND, Mechanism.MPS) for d in range(gpulets // 2))
    names = list(MODELS)
    placed = []
    for place in range(gpulets):
        name = names[place % len(names)]
        latency = profile.latency(name, half.sms, batch)
        turn = Turn(name, batch, batch * SECOND / latency, latency)
        placed.append(Gpulet(place, place // 2, half, 50 * (place % 2), latency, (turn,)))
    plan = Plan(devices, tuple(placed))
    demand = {name: LOAD * sum(t.rate for g in plan.hosts(name) for t in g.turns) for name in names}
    duration = round(requests / sum(demand.values()) * SECOND)
    return Problem(MODELS, demand, devices, profile), plan, duration


class BoundOnArrival:
    """One row a batch; each request goes to the gpulet of its model that is predicted to be free first."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._hosts = {name: [g.id for g in plan.hosts(name)] for name in problem.models}
        self._latency = {(g.id, t.model): t.latency for g in plan.gpulets for t in g.turns}
        self._free_at = [0] * len(plan.gpulets)

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        free_at = self._free_at
        best = min(self._hosts[request.model], key=free_at.__getitem__)
        free_at[best] = max(now, free_at[best]) + self._latency[best, request.model]
        return best

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        touched = [fleet.gpulets[q.owner] for q in changed.queues if isinstance(q.owner, int)]
        runs = {g.id: Run(g.id, [g.queue.head]) for g in changed.gpulets + touched if g.is_idle and g.queue}
        return Decision(list(runs.values()))


def batched(problem: Problem, plan: Plan) -> Dispatcher:
    """The default dispatcher."""
    return DutyCycle(problem, plan)


def stamped(result: dict[str, Any]) -> dict[str, Any]:
    """A result with when, at which commit and on which machine it was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit, "machine": machine, **result}


def record(name: str, result: dict[str, Any]) -> None:
    """Print a result and append it, stamped, to `results/<name>.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(stamped(result)) + "\n")
    print(json.dumps(result, indent=2))


def processor() -> str:
    """The first core's model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def planners(server: int) -> list[int]:
    """The server's children that are no workers."""
    told = [(task / "children").read_text() for task in Path(f"/proc/{server}/task").glob("*")]
    children = [int(child) for line in told for child in line.split()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
