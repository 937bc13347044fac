"""The mix of the live comparison: six models as clients send to them, their repository, fleet files, and our commands."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit import REPOSITORY, Context

MIX = ("resnet50", "mobilenet_v2", "bert-base", "densenet121", "vgg16", "vit_b_16")
_KIND = "h200-141gb"
_LEAST_SLO_MS = 50.0
_MOST_ROWS = {True: 4, False: 32}
"""By whether it is tiny."""


@dataclass(frozen=True, slots=True)
class Model:
    """Requests/s at factor 1, and milliseconds from arrival to answer."""

    rate: float
    slo_ms: float


@dataclass(frozen=True, slots=True)
class Site:
    """Where fleet files, models and profiles of the comparison lie, and how our commands are run."""

    context: Context
    folder: Path
    models: Mapping[str, Model] = field(default_factory=dict)

    def fleet(self, system: str, mechanism: str, factor: float, interference: str = "", slack: float = 1.0) -> Path:
        """Write a fleet file; without rates where nobody knows them yet. `slack` is on objectives."""
        path = self.folder / f"{system}.toml"
        executor = "" if self.context.is_real else 'executor = "rehearsal"\n'
        lines = [
            f'[fleet]\nsystem = "{system}"\n\n[[devices]]\nkind = "{_KIND}"\nmechanism = "{mechanism}"\n{executor}'
        ]
        lines.append(
            '[server]\nrepository = "models"\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\n'
        )
        lines += [f'[interference]\nmodel = "{interference}"\n'] if interference else []
        for name in MIX:
            known = self.models.get(name)
            rates = f"slo_ms = {known.slo_ms * slack:.3f}\nrate = {known.rate * factor:.4f}\n" if known else ""
            lines.append(f'[[models]]\nname = "{name}"\nmax_batch = {_MOST_ROWS[self.context.tiny]}\n{rates}')
        path.write_text("\n".join(lines))
        return path

    @property
    def environment(self) -> dict[str, str]:
        """Profiles are kept beside the results, so that a later call finds them."""
        paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache"), "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        return {**os.environ, **cache}

    def command(self, *arguments: str) -> list[str]:
        """One of ours."""
        return [sys.executable, "-m", "gpulet.cli", *arguments]

    def ask(self, *arguments: str, allowed: Sequence[int] = (0,), seconds: float = 300.0) -> dict[str, Any]:
        """What a command prints with --json; raises `RuntimeError` with its own words where it fails, or `TimeoutExpired`."""
        done = subprocess.run(
            [*self.command(*arguments), "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode not in allowed:
            msg = (
                f"{' '.join(arguments[:2])}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}"
            )
            raise RuntimeError(msg)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def export_mix(site: Site) -> None:
    """Single precision inside; images as bytes, as clients send them, so that the network is not what is measured."""
    import torch  # noqa: PLC0415
    from models import MODELS, build, example  # noqa: PLC0415

    class Pixels(torch.nn.Module):
        """Bytes of an image, normalised on the device."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model((x.to(torch.float32) - 127.5) / 63.75)
            return found

    rows = torch.export.Dim("batch", min=1, max=4096)
    for name in MIX:
        path = site.folder / "models" / name / "1" / "model.pt2"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny = site.context.tiny
        model, given = build(name, tiny=tiny, dtype=torch.float32), example(name, 2, tiny=tiny, dtype=torch.float32)
        if not MODELS[name].takes_ids:
            model, given = Pixels(model), torch.zeros(given.shape, dtype=torch.uint8)
        with torch.no_grad():
            program = torch.export.export(model, (given,), dynamic_shapes=({0: rows},))
        unfinished = path.with_suffix(".part.pt2")
        torch.export.save(program, unfinished)
        unfinished.replace(path)


def measured_mix(site: Site, budget_s: float) -> dict[str, Model]:
    """Measure what is missing on shares and on the whole GPU; rates and objectives by what the whole GPU does.

    A rate at factor 1 is a sixth of what the GPU answers of that model alone. An objective is twice the latency of the
    largest batch alone (gpu-lets, ATC'22, section 5.1), and no less than 50 ms: below, six models cannot take turns.
    """
    site.ask("profile", str(site.fleet("elastic", "green", 1.0)), "--budget", f"{budget_s:g}")
    alone = site.ask("profile", str(site.fleet("triton", "whole", 1.0)), "--budget", f"{budget_s:g}")
    found: dict[str, Model] = {}
    for name in MIX:
        points = [p for p in alone["points"] if p["model"] == name]
        best = max(p["batch"] / p["mean_ms"] for p in points) * 1000
        largest = max(points, key=lambda p: p["batch"])
        part = 0.02 if site.context.tiny else 1.0 / len(MIX)  # a rehearsal has two cores, whatever it is told
        found[name] = Model(best * part, max(_LEAST_SLO_MS, 2 * largest["mean_ms"]))
    return found
