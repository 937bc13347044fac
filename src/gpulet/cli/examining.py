"""What this machine can do: `doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, out, print_json
from gpulet.device import Mechanism
from gpulet.doctor import Asked, Check, Machine, Verdict, check_cores, cuttable, examine
from gpulet.errors import BadInput, Unusable
from gpulet.executors.gpus import REAL, REHEARSED
from gpulet.executors.mpscontrol import Binary, find_binary
from gpulet.executors.nvmllibrary import open_nvml
from gpulet.fleetfile import Wanted, usable_cores, wanted
from gpulet.proofs import models_of, prove_green

_EMULATED = "emulated: nothing of this machine is asked for"


def doctor(
    target: Annotated[
        Path | None, typer.Argument(help="a fleet file, or a directory: check what its devices need; left out: a GPU")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="check the cores alone, no GPU is asked for")] = False,
    as_json: AsJson = False,
) -> None:
    """What this machine can do, check by check, one line each. Nothing is changed.

    A GPU is asked for unless --cpu or a fleet file says otherwise. With cuda-bindings a process of ours holds it for some
    seconds and shows what green contexts do there. Exit code 3 where something asked for is not here.

    Example: gpulet doctor fleet.toml
    """
    if cpu and target:
        msg = "--cpu: a fleet file says itself whether it asks for cores or GPUs; give one of the two"
        raise BadInput(msg)
    want = wanted(target) if target else Wanted((), "gpu")
    if want.executor == "simulated":
        says = f"{len(want.devices)} {_EMULATED}"
        _print((Check("devices", Verdict.OK, says, {"devices": len(want.devices)}),), as_json=as_json)
        return
    if want.executor == "rehearsal":
        _print(_rehearsed(want), as_json=as_json)
        return
    machine, asked = _machine(), Asked(want.devices, any_gpu=not want.devices and not cpu)
    try:
        checks = examine(machine, asked)
    except Unusable as error:
        if not as_json:
            raise
        checks = (Check("driver", Verdict.NO, str(error), is_asked=True),)
    is_green = Mechanism.GREEN in asked.mechanisms
    gpus = cuttable(machine, asked)
    _print((*checks, *prove_green(gpus, models_of(want.site), REAL, is_asked=is_green)), as_json=as_json)


def _rehearsed(want: Wanted) -> tuple[Check, ...]:
    """One imaginary GPU is as good as another."""
    cores = check_cores(usable_cores(), is_asked=True)
    if want.devices[0].mechanism is not Mechanism.GREEN:
        return cores, Check("devices", Verdict.OK, f"{len(want.devices)} rehearsed: no GPU is asked for")
    first = ((0, want.devices[0].kind),)
    return cores, *prove_green(first, models_of(want.site), REHEARSED, is_asked=True, note=" (rehearsed)")


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
