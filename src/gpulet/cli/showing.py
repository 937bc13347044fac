"""What there is: `config show`, `systems`, `version`."""

from rich.table import Table

from gpulet import __version__
from gpulet.cli.common import AsJson, out, print_json
from gpulet.config import describe
from gpulet.systems import SYSTEMS


def list_systems(as_json: AsJson = False) -> None:
    """The systems that `--system` takes.

    Example: gpulet systems
    """
    if as_json:
        print_json({name: found.about for name, found in SYSTEMS.items()})
        return
    for name, found in SYSTEMS.items():
        out.print(f"{name}: {found.about}", markup=False)


def show_config(as_json: AsJson = False) -> None:
    """Every key of a fleet file with its default and meaning.

    Example: gpulet config show
    """
    rows = list(describe())
    if as_json:
        print_json([{"section": s, "key": k, "default": d, "meaning": m} for s, k, d, m in rows])
        return
    table = Table("section", "key", "default", "meaning")
    for section, key, default, meaning in rows:
        shown = '""' if default == "" else str(default)
        table.add_row(section, key, shown, meaning)
    out.print(table)


def version() -> None:
    """The version."""
    out.print(__version__)
