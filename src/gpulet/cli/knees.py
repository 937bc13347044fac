"""Where more SMs stop paying: `knee`."""

from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, out, print_json, read_text
from gpulet.device import Kind, find_kind, mps_size
from gpulet.errors import BadInput, ProfileError
from gpulet.profile import Profile
from gpulet.profiletable import parse_profile
from gpulet.reports.knees import draw_knees, knee_document, knee_table, knees_of


def knee(
    table: Annotated[Path, typer.Argument(metavar="PROFILE", help="a profile table, as import-profile writes it")],
    kind: Annotated[str, typer.Option("--kind", help="the device; needed where the table gives share_pct")] = "",
    model: Annotated[str, typer.Option("--model", help="only this one")] = "",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="draw latency and efficacy by size to this .png or .svg")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The size beyond which more SMs stop paying, by model and batch, by three rules and by a model of kernels.

    Efficacy: the most rows / (latency^2 x size), as D-STACK has it. Latency: within 10 % of the largest size's. Kneedle:
    farthest above the chord of rows/s by size. Ramp: of the kernels whose numbers fall in equal steps and whose latency
    comes closest to all points of the model. Batches that were measured at one size only are left out.

    Example: gpulet knee profile.csv --kind rtx2080ti --plot knees.png
    """
    if plot and plot.suffix not in {".png", ".svg"}:
        msg = f"--plot {plot}: the file must end in .png or .svg"
        raise BadInput(msg)
    if kind == "cpu":
        msg = "--kind cpu: a table of a CPU gives cores, not share_pct; leave --kind out"
        raise BadInput(msg)
    found_kind = find_kind(kind) if kind else None
    profile = _read(table, found_kind)
    if model and model not in profile.models:
        msg = f"--model {model!r}: {table} has {', '.join(profile.models)}"
        raise BadInput(msg)
    found = [knees_of(profile, name) for name in ([model] if model else profile.models)]
    whole = found_kind.sms if found_kind else 0
    if plot:
        try:
            draw_knees(found, plot)
        except OSError as error:
            msg = f"--plot {plot} cannot be written: {error}"
            raise BadInput(msg) from None
    if as_json:
        print_json(knee_document(found, whole))
    else:
        out.print(knee_table(found, whole))


def _read(path: Path, kind: Kind | None) -> Profile:
    """The table; raises `ProfileError` for shares of a device that nobody named, and for sizes beyond a named one."""

    def sms_of(share: float) -> int:
        if kind is None:
            msg = f"{path} gives sizes as share_pct: say of which device with --kind"
            raise BadInput(msg)
        return mps_size(kind, share).sms

    profile = parse_profile(read_text(path, "profile"), sms_of, str(path))
    largest = max(point.size for point in profile.points)
    if kind and kind.sms and largest > kind.sms:
        msg = f"{path}: size {largest}, but a {kind.name} has {kind.sms} SMs"
        raise ProfileError(msg)
    return profile
