"""What a running server is doing about its plan, and how to change that: `history`, `control ...`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gpulet.adminclient import AdminClient
from gpulet.cli.common import AsJson, out, print_json
from gpulet.errors import BadInput
from gpulet.reports.runs import change_text

Server = Annotated[
    str, typer.Option("--server", help="its HTTP port on this machine, its Unix socket, or http(s)://HOST:PORT")
]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="its bearer token, for http(s)")]
Device = Annotated[int, typer.Argument(min=0, help="its index in the fleet")]
ModelName = Annotated[str, typer.Argument(help="a model of the fleet")]
_DEFAULT = "8000"


def history(server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Decisions of a live server: what was seen, what was considered, what was chosen.

    Example: gpulet history --server 8000
    """
    rows = _client(server, token_file).call("GET", "/gpulet/history")
    if as_json:
        print_json(rows)
        return
    for row in rows:
        out.print(change_text(row), markup=False)
    if not rows:
        out.print("nothing has called for another plan yet")


def status(server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """What serves: rates as they are seen and planned for, devices, whether the plan is frozen.

    Example: gpulet control status
    """
    told = _client(server, token_file).call("GET", "/gpulet/status")
    if as_json:
        print_json(told)
        return
    state = "frozen" if told["frozen"] else "changing" if told["changing"] else "in force"
    used = sum(device["in_use"] for device in told["devices"])
    out.print(f"{told['system']}, {told['mode']}: plan {state}, {told['changes']} changes, ", end="")
    out.print(f"{used} of {len(told['devices'])} devices in use")
    table = Table("model", "SLO ms", "rows/s", "target", "planned", "ready")
    for name, row in told["models"].items():
        rates = (f"{row[key]:.1f}" for key in ("rate", "target", "planned"))
        table.add_row(name, f"{row['slo_ms']:g}", *rates, "yes" if row["ready"] else "no")
    out.print(table)
    for device in told["devices"]:
        if device["out"]:
            out.print(f"device {device['device']} is out")


def plan_in_force(server: Server = _DEFAULT, token_file: TokenFile = None) -> None:
    """The plan in force as JSON: what `control force` and `serve --plan` take.

    Example: gpulet control plan > plan.json
    """
    print_json(_client(server, token_file).call("GET", "/gpulet/plan"))


def freeze(server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Keep the plan in force, whatever happens.

    Example: gpulet control freeze
    """
    _do(server, token_file, "/gpulet/freeze", as_json=as_json)


def thaw(server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let the plan change again.

    Example: gpulet control thaw
    """
    _do(server, token_file, "/gpulet/thaw", as_json=as_json)


def force(
    plan: Annotated[Path, typer.Argument(help="what `plan --json` wrote, or `control plan`")],
    server: Server = _DEFAULT,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Bring a plan into force while serving; one that cannot be is refused, and the old one stays.

    Example: gpulet control force plan.json
    """
    try:
        body = plan.read_bytes()
    except OSError as error:
        msg = f"plan {plan} cannot be read: {error.strerror}"
        raise BadInput(msg) from None
    _do(server, token_file, "/gpulet/force", body, as_json=as_json)


def rollback(server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Bring back the plan before the one in force.

    Example: gpulet control rollback
    """
    _do(server, token_file, "/gpulet/rollback", as_json=as_json)


def drain(device: Device, server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Serve without a device.

    Example: gpulet control drain 2
    """
    _do(server, token_file, f"/gpulet/devices/{device}/drain", as_json=as_json)


def restore(device: Device, server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Let plans use a device again.

    Example: gpulet control restore 2
    """
    _do(server, token_file, f"/gpulet/devices/{device}/restore", as_json=as_json)


def slo(
    model: ModelName,
    slo_ms: Annotated[float, typer.Argument(help="time allowed from arrival to answer, in ms")],
    server: Server = _DEFAULT,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a model another objective, from the next request on.

    Example: gpulet control slo resnet50 80
    """
    _do(server, token_file, f"/gpulet/models/{model}/slo", {"slo_ms": slo_ms}, as_json=as_json)


def rate(
    model: ModelName,
    requests_per_s: Annotated[float, typer.Argument(help="that are coming")],
    server: Server = _DEFAULT,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Plan for a rate before it is there.

    Example: gpulet control rate resnet50 400
    """
    _do(server, token_file, f"/gpulet/models/{model}/rate", {"rate": requests_per_s}, as_json=as_json)


def add(model: ModelName, server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Serve a model that was removed or not loaded, or one that is new in the fleet file or repository.

    Example: gpulet control add resnet50
    """
    _do(server, token_file, f"/gpulet/models/{model}/add", as_json=as_json)


def remove(model: ModelName, server: Server = _DEFAULT, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Serve a model no more; what it had goes to the others.

    Example: gpulet control remove resnet50
    """
    _do(server, token_file, f"/gpulet/models/{model}/remove", as_json=as_json)


def what_if(
    plan: Annotated[Path | None, typer.Option("--plan", help="what `plan --json` wrote")] = None,
    system: Annotated[str, typer.Option("--system", help="or what this system would plan for what came")] = "",
    minutes: Annotated[float, typer.Option("--minutes", help="of arrivals, at most 10")] = 10.0,
    server: Server = _DEFAULT,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """What another plan would have made of the last minutes, beside the plan in force; nothing is changed.

    Example: gpulet control what-if --system elastic --minutes 5
    """
    asked: dict[str, Any] = {"minutes": minutes}
    if plan and system:
        msg = "--plan and --system are two answers to one question"
        raise BadInput(msg)
    if plan:
        try:
            asked["plan"] = json.loads(plan.read_bytes())
        except (OSError, ValueError) as error:
            msg = f"plan {plan} cannot be read: {error}"
            raise BadInput(msg) from None
    if system:
        asked["system"] = system
    told = _client(server, token_file).call("POST", "/gpulet/what-if", asked)
    if as_json:
        print_json(told)
        return
    _print_what_if(told)


def _print_what_if(told: dict[str, Any]) -> None:
    table = Table("", "in force", "candidate", title=f"the last {told['seconds']:.0f} s, simulated")
    now, then = told["in_force"], told["candidate"]
    table.add_row("devices", str(now["devices_used"]), str(then["devices_used"]))
    for name in now["models"]:
        for key, unit in (("attainment", ".2%"), ("p99_ms", ".1f")):
            table.add_row(f"{name} {key}", *(f"{side['models'][name][key]:{unit}}" for side in (now, then)))
    out.print(table)


def _client(server: str, token_file: Path | None) -> AdminClient:
    token = ""
    if token_file:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"--token-file {token_file} cannot be read: {error}"
            raise BadInput(msg) from None
    return AdminClient(server, token)


def _do(server: str, token_file: Path | None, path: str, body: object = None, *, as_json: bool) -> None:
    told = _client(server, token_file).call("POST", path, body)
    if as_json:
        print_json(told)
    else:
        out.print(told.get("chosen") or ", ".join(f"{key} {value}" for key, value in told.items()), markup=False)
