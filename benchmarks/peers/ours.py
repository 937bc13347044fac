"""gpulet as a user would run it: a fleet file of this machine's cores, profiled, planned, served with its journal on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from gpulet.config import ServerSection
from peers.live import Live, started
from peers.onnxfiles import Network
from peers.processes import Unavailable
from peers.search import highest_level
from peers.table import WAIT_US
from peers.wire import Wire, free_ports

HAS_GRPC = "grpc_port" in ServerSection.model_fields
_LIMIT_S = 600
_MECHANISMS = {"cut": "cpu", "whole": "whole"}
_GUESS, _LEVELS = 3, 8
Rates = Callable[[int], Mapping[str, float]]
"""A level, from 1 to 8, to requests per second by model."""


def fleet_text(networks: Sequence[Network], rates: Mapping[str, float], way: str) -> str:
    """The fleet file; `way` is `cut` or `whole`, as the device's mechanism. A batch of heavy rows gains nothing (specs/data_plane), so they are run one by one."""
    lines = ["[fleet]", 'system = "gpulet"', "[[devices]]", 'kind = "cpu"']
    lines += [f'mechanism = "{_MECHANISMS[way]}"']
    for network in networks:
        lines += ["[[models]]", f'name = "{network.name}"', f"slo_ms = {network.slo_ms}"]
        lines += [f"rate = {rates[network.name]}", f"max_batch = {1 if network.is_heavy else 32}"]
        lines += [] if network.is_heavy else [f"max_queue_delay_us = {WAIT_US}"]
    lines += ["[server]", 'repository = "models"', 'journal = "journal"']
    return "\n".join(lines) + "\n"


def fleet_file(networks: Sequence[Network], rates: Rates, way: str, folder: Path, budget_s: float) -> Path:
    """A fleet file profiled, with a plan for the highest level of rates that has one; raises `Unavailable`.

    Measured twice where the first profile has no plan at all: something else may have been running.
    """
    for network in networks:
        network.save(folder / "models")
    path, said = folder / f"{way}.toml", ""

    def has_plan(level: int) -> bool:
        nonlocal said
        path.write_text(fleet_text(networks, rates(level), way))
        done = _run(folder, "plan", path, "--json")
        if done.returncode:
            said = " ".join(done.stderr.split())
        else:  # levels that have one come in rising order: the last is the highest
            planned_file(path).write_text(done.stdout)
        return not done.returncode

    for again in ((), ("--again",)):
        path.write_text(fleet_text(networks, rates(1), way))
        _run(folder, "profile", path, "--budget", budget_s, *again)
        level = highest_level(has_plan, _GUESS, _LEVELS)
        if level:
            path.write_text(fleet_text(networks, rates(level), way))
            return path
    msg = said or "no plan"
    raise Unavailable(msg)


def planned_file(fleet: Path) -> Path:
    """Where the plan of a fleet file is: a server that is started again must not plan anew from a profile that changed."""
    return fleet.with_suffix(".json")


def _run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpulet.cli", *map(str, arguments)]
    environment = {**os.environ, **_store(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)


def _store(folder: Path) -> dict[str, str]:
    """A profile store that is thrown away with the folder."""
    return {"XDG_CACHE_HOME": str(folder / "cache")}


@contextmanager
def served_by_us(networks: Sequence[Network], fleet: Path) -> Iterator[Live]:
    """A fleet of `fleet_file` until the block ends."""
    folder = fleet.parent
    kinds = ("http", "metrics", "grpc") if HAS_GRPC else ("http", "metrics")
    ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
    listening = "".join(f"{kind}_port = {port}\n" for kind, port in ports.items())
    serving = folder / "serving.toml"
    serving.write_text(fleet.read_text() + listening)
    plan = str(planned_file(fleet))
    command = [sys.executable, "-m", "gpulet.cli", "serve", str(serving), "--plan", plan]
    began = monotonic()
    with started(command, _store(folder), Wire.BINARY, {"grpc": 0, **ports}, folder) as live:
        live.await_answers(networks)
        live.start_s = monotonic() - began
        yield live
    for journal in folder.glob("journal*"):
        journal.unlink()
