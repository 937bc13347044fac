"""What others asked of their fleets: `import-scenario`."""

import os
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, out, print_json, read_text, write_text
from gpulet.config import FleetFile
from gpulet.device import Kind, Mechanism, find_kind, mps_size, sizes
from gpulet.errors import BadInput
from gpulet.importing.scenarios import Frame, format_fleet, read_scenario
from gpulet.importing.table import read_table
from gpulet.profile import Profile
from gpulet.profiletable import parse_profile
from gpulet.systems import find_system


def import_scenario(
    table: Annotated[Path, typer.Argument(metavar="SLO.csv", help="columns model, slo_ms, rate (rows/s), [scenario]")],
    profile: Annotated[Path, typer.Option("--profile", help="what `gpulet import-profile --processes all` wrote")],
    kind: Annotated[str, typer.Option("--kind", help="the device it was measured on; one with MIG")] = "a100-80gb",
    scenario: Annotated[str, typer.Option("--scenario", help="which one, where the file holds several")] = "",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=1024, help="how many devices a plan may use")] = 8,
    system: Annotated[str, typer.Option("--system", help="the fleet file's system")] = "segments",
    out_file: Annotated[Path | None, typer.Option("--out", help="write it here, not to standard output")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a published scenario (models with SLOs and rates) into a fleet file of emulated GPUs that MIG cuts.

    Example: gpulet import-scenario slo.csv --scenario S1 --profile profile.csv --gpus 8 --out s1.toml
    """
    if as_json and not out_file:
        msg = "--json needs --out FILE: the fleet file itself goes to standard output"
        raise BadInput(msg)
    device = find_kind(kind)
    sizes(device, Mechanism.MIG)
    find_system(system)
    wishes = read_scenario(read_table(read_text(table, "scenario"), str(table)), scenario)
    folder = out_file.parent if out_file else Path()
    frame = Frame(kind, gpus, system, os.path.relpath(profile, folder))
    text = format_fleet(wishes, _profile(profile, device), frame)
    FleetFile.model_validate(tomllib.loads(text))  # what we write we take
    if not out_file:
        typer.echo(text, nl=False)
        return
    write_text(out_file, text)
    if as_json:
        print_json({"written": str(out_file), "models": [wish.model for wish in wishes], "gpus": gpus})
    else:
        out.print(f"{len(wishes)} models in {out_file}", markup=False, highlight=False, soft_wrap=True)


def _profile(path: Path, kind: Kind) -> Profile:
    return parse_profile(read_text(path, "profile"), lambda share: mps_size(kind, share).sms, str(path))
