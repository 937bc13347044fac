"""gpulet as a user would run it: a fleet file of this machine's cores, profiled, planned, served with its journal on."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from gpulet.config import ServerSection
from peers.live import Live, started
from peers.onnxfiles import Network
from peers.processes import Unavailable
from peers.wire import Wire, free_ports

HAS_GRPC = "grpc_port" in ServerSection.model_fields
_LIMIT_S = 600


def fleet_text(networks: Sequence[Network], rates: Mapping[str, float]) -> str:
    """The fleet file. A batch of heavy rows gains nothing (specs/data_plane), so they are run one by one."""
    lines = ["[fleet]", 'system = "gpulet"', "[[devices]]", 'kind = "cpu"']
    for network in networks:
        lines += ["[[models]]", f'name = "{network.name}"', f"slo_ms = {network.slo_ms}"]
        lines += [f"rate = {rates[network.name]}", f"max_batch = {1 if network.is_heavy else 32}"]
    lines += ["[server]", 'repository = "models"', 'journal = "journal"']
    return "\n".join(lines) + "\n"


def fleet_file(
    networks: Sequence[Network], tries: Sequence[Mapping[str, float]], folder: Path, budget_s: float
) -> Path:
    """A fleet file profiled and with a plan: the first of the rates in `tries` that has one; raises `Unavailable`."""
    for network in networks:
        network.save(folder / "models")
    path, said = folder / "fleet.toml", ""
    for rates in tries:
        path.write_text(fleet_text(networks, rates))
        if rates is tries[0] and _run(folder, "profile", path, "--budget", budget_s).returncode:
            break
        done = _run(folder, "plan", path)
        if not done.returncode:
            return path
        said = " ".join(done.stderr.split())
    msg = f"no plan: {said}"
    raise Unavailable(msg)


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
    command = [sys.executable, "-m", "gpulet.cli", "serve", str(serving)]
    began = monotonic()
    with started(command, _store(folder), Wire.BINARY, {"grpc": 0, **ports}, folder) as live:
        live.await_answers(networks)
        live.start_s = monotonic() - began
        yield live
    for journal in folder.glob("journal*"):
        journal.unlink()
