"""The live comparison asks how much each system serves of one mix, on one GPU, through the real server.

Six models, the same arrivals for every system at every rate (seeded Poisson), loads that rise by a seventh. A system holds a
load where at most 1 % of every model's requests are late or unanswered; its goodput is that of the largest that it holds.
Each is planned for as much as its own planner accepts, carved, and served by `gpulet serve`; the load is `gpulet bench`.
"""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from kit import Context, Result, Verdict, judged, keep
from served import MIX, Model, Site, export_mix, measured_mix

SYSTEMS = (
    ("gpulet", "green"),
    ("triton", "whole"),
    ("temporal", "whole"),
    ("elastic-int", "green"),
    ("dstack", "green"),
)
"""Most valuable first. `triton` on `whole` is what plain streams without partitions give."""
_LADDER = tuple(0.1 * (8 / 7) ** step for step in range(40))
_ALLOWED = 0.01
_BEGIN = 0.6
"""Of what the planner accepts: the first load."""
_STRIDE = 4
_LOADS = (3.0, 2.4, 2.0, 1.6, 1.3, 1.0, 0.8, 0.6, 0.45, 0.3)
_PLANNING_S = 20.0
_MOST_LOADS = 8
_READY_S = 150.0
_LEAST_S = 60.0
_OVER_TEMPORAL, _OVER_STREAMS = 2.0, 1.3


def run(context: Context) -> Result:
    """BAD where ours is not twice temporal sharing, or not 1.3 times plain streams."""
    site, found = _prepared(context)
    systems: dict[str, Any] = found.setdefault("systems", {})
    for system, mechanism in SYSTEMS:
        if system in systems:
            continue
        if context.left < _LEAST_S:
            return Result(Verdict.PARTLY, f"{len(systems)} of {len(SYSTEMS)} systems; {_line(systems)}", found)
        try:
            systems[system] = _measured(site, system, mechanism)
        except (RuntimeError, subprocess.TimeoutExpired, TimeoutError) as error:
            systems[system] = {"mechanism": mechanism, "error": str(error), "goodput": 0.0}
        keep(context, "live", found)
    return _judged(context, systems, found)


def _prepared(context: Context) -> tuple[Site, dict[str, Any]]:
    """Models, profiles, rates and objectives: measured once, then kept with the results."""
    folder = context.out / "live"
    (folder / "models").mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = dict(context.numbers("live"))
    site = Site(context, folder)
    export_mix(site)
    models = measured_mix(site, 0.03 if context.tiny else 0.15)
    if "models" in found:  # rates of an earlier call: systems must be compared at the same
        models = {name: Model(**one) for name, one in found["models"].items()}
    found["models"] = {name: asdict(one) for name, one in models.items()}
    found["seconds_a_load"] = 1.0 if context.tiny else 5.0
    return Site(context, folder, models), found


def _measured(site: Site, system: str, mechanism: str) -> dict[str, Any]:
    """How much it holds, planned for the largest load that its planner accepts.

    Triton plans nothing: ours of its name is told ten times the objective, and judged as the others are.
    """
    interference = _interference(site) if system == "elastic-int" else ""
    used = "elastic" if system == "elastic-int" and not interference else system
    asked = 1.0
    if system == "triton":
        fleet = site.fleet(used, mechanism, 1.0, slack=10.0)
    else:
        asked = next((f for f in _planned(site) if _accepts(site, used, mechanism, f, interference)), 0.0)
        fleet = site.fleet(used, mechanism, asked, interference)
    if not asked:
        msg = "its planner accepts none of the loads"
        raise RuntimeError(msg)
    told: dict[str, Any] = {"mechanism": mechanism, "system": used, "planned_factor": asked, "loads": {}}
    with _served(site, str(fleet)) as url:
        told["loads"] = _search(site, url, asked)
    held = [load for load in told["loads"].values() if load["holds"]]
    best = max(held, key=lambda load: load["goodput"], default=None)
    return {**told, "goodput": best["goodput"] if best else 0.0, "factor": best["factor"] if best else 0.0}


def _planned(site: Site) -> tuple[float, ...]:
    """Loads to plan for, the largest first."""
    return (1.0,) if site.context.tiny else _LOADS


def _accepts(site: Site, system: str, mechanism: str, factor: float, interference: str) -> bool:
    """Whether there is a plan for that load, in time."""
    fleet = str(site.fleet(system, mechanism, factor, interference))
    try:
        return bool(site.ask("plan", fleet, allowed=(0, 1), seconds=_PLANNING_S)["feasible"])
    except subprocess.TimeoutExpired:
        return False


def _search(site: Site, url: str, asked: float) -> dict[int, dict[str, Any]]:
    """Loads by their place on the ladder: by strides until one holds and one does not, then between the two."""
    loads: dict[int, dict[str, Any]] = {}
    step = next((n for n, factor in enumerate(_LADDER) if factor >= _BEGIN * asked), len(_LADDER) - 1)
    for _ in range(2 if site.context.tiny else _MOST_LOADS):
        loads[step] = _driven(site, url, step)
        held = max((n for n, load in loads.items() if load["holds"]), default=-1)
        failed = min((n for n, load in loads.items() if n > held and not load["holds"]), default=len(_LADDER))
        if failed - held == 1 or site.context.left < _LEAST_S / 2:
            break
        is_between = held >= 0 and failed < len(_LADDER)
        beyond = min(held + _STRIDE, failed - 1) if held >= 0 else max(failed - _STRIDE, 0)
        step = (held + failed) // 2 if is_between else beyond
    return loads


@contextmanager
def _served(site: Site, fleet: str) -> Iterator[str]:
    """A server of ours, ready; raises `TimeoutError` where it never is, `RuntimeError` where it ends."""
    with (site.folder / "server.log").open("w+") as log:
        server = subprocess.Popen(
            site.command("serve", fleet), env=site.environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield _address(site, server)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _address(site: Site, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + min(_READY_S, site.context.left)
    while time.monotonic() < until:
        lines = (site.folder / "server.log").read_text().splitlines()
        ready = [json.loads(line) for line in lines if line.startswith("{") and '"ready"' in line]
        if ready:
            return str(ready[-1]["url"]).removeprefix("http://")
        if server.poll() is not None:
            msg = f"the server ended with {server.returncode}: {lines[-1] if lines else 'no word'}"
            raise RuntimeError(msg)
        time.sleep(0.2)
    msg = "the server was not ready in time"
    raise TimeoutError(msg)


def _driven(site: Site, url: str, step: int) -> dict[str, Any]:
    factor = _LADDER[step]
    loads = [f"{name}:{one.rate * factor:.4f}:{one.slo_ms:.3f}" for name, one in site.models.items()]
    options = [part for load in loads for part in ("--load", load)]
    seconds = "1" if site.context.tiny else "5"
    report = site.ask("bench", url, *options, "--duration", seconds, "--seed", str(step), "--connections", "128")
    short = {name: 1 - model["attainment"] for name, model in report["models"].items() if model["arrived"]}
    worst = max(short, key=lambda name: short[name])
    return {
        "factor": factor,
        "goodput": report["total"]["goodput"],
        "violations": short[worst],
        "worst": worst,
        "holds": short[worst] <= _ALLOWED,
        "p99_ms": {name: model["p99_ms"] for name, model in report["models"].items()},
    }


def _interference(site: Site) -> str:
    """A constant slowdown, fitted to the pairs of E6 where there are any: nobody measured these models' use of memory."""
    pairs = site.context.earlier("interference.csv")
    if pairs is None:
        return ""
    name = "interference.json"
    site.ask("interference", "fit", str(pairs.resolve()), "--model", "constant", "--out", str(site.folder / name))
    return name


def _line(systems: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {one['goodput']:.0f}/s" for name, one in systems.items())


def _judged(context: Context, systems: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> Result:
    ours = systems["gpulet"]["goodput"]
    complaints = [f"{name}: {one['error']}" for name, one in systems.items() if "error" in one]
    for other, least in (("temporal", _OVER_TEMPORAL), ("triton", _OVER_STREAMS)):
        theirs = systems[other]["goodput"]
        if context.is_real and ours < least * theirs:
            complaints.append(f"ours {ours:.0f}/s is less than {least:g} x {other}'s {theirs:.0f}/s")
    return judged(complaints, f"{len(MIX)} models at <= 1 % violations: {_line(systems)}", found)
