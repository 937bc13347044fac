"""What this machine can do: `doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, out, print_json
from gpulet.device import Device
from gpulet.doctor import Asked, Check, Machine, Verdict, examine
from gpulet.errors import BadInput, Unusable
from gpulet.executors.mpscontrol import Binary, find_binary
from gpulet.executors.nvmllibrary import open_nvml
from gpulet.fleetfile import devices_of, usable_cores

_EMULATED = "emulated: nothing of this machine is asked for"


def doctor(
    target: Annotated[
        Path | None, typer.Argument(help="a fleet file, or a directory: check what its devices need; left out: a GPU")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="check the cores alone, no GPU is asked for")] = False,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, check by check, one line each. Nothing is started or changed.

    A GPU is asked for unless --cpu or a fleet file says otherwise. Exit code 3 where something asked for is not here.

    Example: gpulet doctor fleet.toml
    """
    if cpu and target:
        msg = "--cpu: a fleet file says itself whether it asks for cores or GPUs; give one of the two"
        raise BadInput(msg)
    devices, is_emulated = devices_of(target) if target else ((), False)
    if is_emulated:
        _print(
            (Check("devices", Verdict.OK, f"{len(devices)} {_EMULATED}", {"devices": len(devices)}),), as_json=as_json
        )
        return
    try:
        checks = examine(_machine(), _asked(devices, cpu=cpu))
    except Unusable as error:
        if not as_json:
            raise
        checks = (Check("driver", Verdict.NO, str(error), is_asked=True),)
    _print(checks, as_json=as_json)


def _asked(devices: tuple[Device, ...], *, cpu: bool) -> Asked:
    return Asked(devices, any_gpu=not devices and not cpu)


def _machine() -> Machine:
    found = find_binary()
    return Machine(usable_cores(), open_nvml, Binary(found, os.environ) if found else None)


def _print(checks: tuple[Check, ...], *, as_json: bool) -> None:
    """One line each; ends the command with 3 where something asked for is not here."""
    is_usable = not any(c.is_fatal for c in checks)
    if as_json:
        rows = [
            {"check": c.name, "verdict": c.verdict, "asked": c.is_asked, "says": c.says, **c.numbers} for c in checks
        ]
        print_json({"usable": is_usable, "checks": rows})
    else:
        for c in checks:
            out.print(f"{c.verdict:3} {c.name}: {c.says}", markup=False, highlight=False, soft_wrap=True)
    if not is_usable:
        raise typer.Exit(Unusable.exit_code)
