"""How long planning takes, from 50 models on 25 devices to 400 on 200: `elastic`, and `gpulet` with and without simulation.

Models are gpu-lets' four (figure 3), each copy faster or slower by a factor of its own, at 5 to 250 requests/s.
"""

import random
import sys
import time
from dataclasses import replace

from common import KIND, MODELS, RESULTS, paper_profile, record

from gpulet.core.ports import Planner, Problem
from gpulet.device import Device, Mechanism
from gpulet.plan import Plan
from gpulet.planners.best import best
from gpulet.profile import Profile
from gpulet.systems import CANDIDATES, SYSTEMS
from gpulet.units import MS

COUNTS = (50, 100, 200, 400)
PLANNERS: dict[str, Planner] = {
    "elastic": SYSTEMS["elastic"].planner,
    "gpulet, not simulated": lambda problem: best(problem, candidates=CANDIDATES),
    "gpulet": SYSTEMS["gpulet"].planner,
}


def problem_of(count: int) -> Problem:
    """So many models, on half as many devices."""
    source = random.Random(count)
    measured = paper_profile()
    kinds = list(MODELS)
    models, demand, points = {}, {}, []
    for number in range(count):
        kind, factor = kinds[number % len(kinds)], source.uniform(0.6, 1.6)
        name = f"m{number}"
        for p in measured.points:
            if p.model == kind:
                latency = round(p.mean * factor)
                points.append(replace(p, model=name, mean=latency, p95=latency, p99=latency))
        models[name] = replace(MODELS[kind], name=name, slo=round(MODELS[kind].slo * factor / MS) * MS)
        demand[name] = source.uniform(5, 250) / factor
    devices = tuple(Device(i, KIND, Mechanism.MPS) for i in range(count // 2))
    return Problem(models, demand, devices, Profile(tuple(points)))


def draw(seconds: dict[str, list[float]]) -> None:
    """The growth, as a picture beside the results."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow to import)

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, values in seconds.items():
        axes.plot(COUNTS, values, marker="o", label=name)
    axes.set_xlabel("models (on half as many devices)")
    axes.set_ylabel("seconds to plan")
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "planning.png", dpi=150)


def main() -> None:
    """Plan every size with every planner."""
    seconds: dict[str, list[float]] = {name: [] for name in PLANNERS}
    for count in COUNTS:
        problem = problem_of(count)
        for name, planner in PLANNERS.items():
            before = time.process_time()
            outcome = planner(problem)
            took = time.process_time() - before
            seconds[name].append(took)
            used = outcome.devices_used if isinstance(outcome, Plan) else str(outcome)
            print(f"{count} models, {name}: {took:.2f} s, devices {used}")
    record("planning", {"models": COUNTS, "cpu_seconds": seconds})
    draw(seconds)


if __name__ == "__main__":
    sys.exit(main())
