"""The commands: the only place where files, systems, drivers and reports are put together."""

import os
import sys
from pathlib import Path

import typer
from rich.console import Console

from gpulet.cli import (
    controlling,
    examining,
    holding,
    importing,
    interfering,
    knees,
    planning,
    reproducing,
    reproducing_dac22,
    reproducing_tcc24,
    running,
    scenarios,
    showing,
)
from gpulet.errors import GpuletError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Serve many models on few devices, each within its latency objective (SLO).",
)
config_app = typer.Typer(no_args_is_help=True, help="Fleet files.")
control_app = typer.Typer(no_args_is_help=True, help="A running server's plan: see it, keep it, change it.")
interference_app = typer.Typer(no_args_is_help=True, help="How neighbours on a device slow each other.")
reproduce_app = typer.Typer(no_args_is_help=True, help="A paper's tables from its own measurements, and ours beside.")
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(config_app, name="config")
app.add_typer(control_app, name="control")
app.add_typer(interference_app, name="interference")
for command in (planning.plan, holding.capacity, planning.simulate, running.serve, running.profile, running.bench):
    app.command()(command)
app.command()(importing.import_profile)
app.command()(scenarios.import_scenario)
app.command()(knees.knee)
app.command()(controlling.history)
control_app.command("plan")(controlling.plan_in_force)
control_app.command("what-if")(controlling.what_if)
for call in (
    controlling.status,
    controlling.freeze,
    controlling.thaw,
    controlling.force,
    controlling.rollback,
    controlling.drain,
    controlling.restore,
    controlling.slo,
    controlling.rate,
    controlling.add,
    controlling.remove,
):
    control_app.command()(call)
app.command("replay")(running.replay_journal)
app.command()(examining.doctor)
app.command("systems")(showing.list_systems)
app.command()(showing.version)
config_app.command("show")(showing.show_config)
interference_app.command("fit")(interfering.fit)
reproduce_app.command("atc22")(reproducing.atc22)
reproduce_app.command("dac22")(reproducing_dac22.dac22)
reproduce_app.command("tcc24")(reproducing_tcc24.tcc24)


@interference_app.callback()
def _interference() -> None:
    """Keep `fit` a command of its own while it is the only one."""


def main() -> None:
    """Run the command line; an error we raise on purpose is one line and an exit code."""
    sys.path.insert(0, os.fspath(Path.cwd()))  # so that `--system my_module:NAME` finds a file beside the user
    try:
        app()
    except GpuletError as error:
        Console(stderr=True, soft_wrap=True, emoji=False).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(error.exit_code) from None
