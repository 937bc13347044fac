"""How neighbours slow each other: `interference fit`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as Grid

from gpulet.cli.common import AsJson, out, print_json, write_text
from gpulet.errors import BadInput, ProfileError
from gpulet.fitting import PREDICTORS, Errors, Seen, errors_of, held_back_mean, pair_left_out, percentiles, read_pairs
from gpulet.importing.table import Table, read_table
from gpulet.interference import Interference, format_interference

_FEWEST_PAIRS = 20
Tables = dict[str, dict[str, Errors]]
"""Errors by table and predictor; the first table is the one that was asked for."""


def fit(
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="measured pairs, two sides each")],
    solo: Annotated[
        Path | None, typer.Option("--solo", help="each side alone; left out: solo.csv beside them, else iGniter's")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="other pairs: fit on PAIRS, tell the errors on these")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="which predictor to write: gpulet, linear, constant")
    ] = "gpulet",
    out_file: Annotated[Path | None, typer.Option("--out", help="write the model here, for [interference]")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit interference models to measured pairs and tell how wrong each is on pairs it has not seen.

    Without --test: on a random 30 % held back (mean of 20 splits), and on each pair of models left out in turn.

    Example: gpulet interference fit pairs.csv --out interference.json
    """
    if model not in PREDICTORS:
        msg = f"--model {model!r}: known are {', '.join(PREDICTORS)}"
        raise BadInput(msg)
    alone = _read(solo or _beside(pairs, test))
    seen = _seen(pairs, alone)
    fitted = {name: predictor(seen) for name, predictor in PREDICTORS.items()}
    tables = _tables(seen, read_pairs(_read(test), alone) if test else ())
    written = format_interference(fitted[model])
    if out_file:
        write_text(out_file, json.dumps(written, indent=1) + "\n")
    if as_json:
        print_json({**_document(fitted, tables), "model": written})
    else:
        _print(tables, fitted[model])


def _beside(pairs: Path, test: Path | None) -> Path:
    """The `solo.csv` beside the pairs, the other pairs, or iGniter's; the first one is named where there is none."""
    places = [path.with_name("solo.csv") for path in (pairs, test) if path]
    places.append(Path("../shared/data/v100_igniter/solo.csv"))
    found = next((place for place in places if place.exists()), places[0])
    if found == places[-1]:
        Console(stderr=True, soft_wrap=True, emoji=False).print(f"each side alone: {found}", markup=False)
    return found


def _seen(pairs: Path, alone: Table) -> tuple[Seen, ...]:
    """Both sides of every pair; raises `ProfileError` for fewer pairs than say anything."""
    seen = read_pairs(_read(pairs), alone)
    if len({s.pair for s in seen}) < _FEWEST_PAIRS:
        msg = f"{pairs}: {len(seen) // 2} pairs; at least {_FEWEST_PAIRS} are needed to fit and to test"
        raise ProfileError(msg)
    return seen


def _tables(seen: tuple[Seen, ...], other: tuple[Seen, ...]) -> Tables:
    """On the other pairs; without any, on what each fit has not seen of its own."""
    if other:
        return {"test": {n: percentiles(errors_of(p(seen), other)) for n, p in PREDICTORS.items()}}
    return {
        "held_back": {name: held_back_mean(predictor, seen) for name, predictor in PREDICTORS.items()},
        "pair_left_out": {name: pair_left_out(predictor, seen) for name, predictor in PREDICTORS.items()},
    }


def _document(fitted: dict[str, Interference], tables: Tables) -> dict[str, object]:
    errors = {title: {name: asdict(e) for name, e in table.items()} for title, table in tables.items()}
    return {
        "coefficients": {n: dict(zip(m.features, m.coefficients, strict=True)) for n, m in fitted.items()},
        "predictors": next(iter(errors.values())),
        "tables": errors,
    }


def _print(tables: Tables, chosen: Interference) -> None:
    for title, table in tables.items():
        out.print(_grid(title, table))
    for name, value in zip(chosen.features, chosen.coefficients, strict=True):
        out.print(f"  {name:36} {value: .6g}", markup=False, highlight=False)


def _grid(title: str, table: dict[str, Errors]) -> Grid:
    grid = Grid("predictor", "median %", "90 %", "95 %", title=title.replace("_", " "))
    for name, errors in table.items():
        grid.add_row(name, f"{errors.median_pct:.2f}", f"{errors.p90_pct:.2f}", f"{errors.p95_pct:.2f}")
    return grid


def _read(path: Path) -> Table:
    try:
        return read_table(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"table {path} cannot be read: {error}"
        raise ProfileError(msg) from None
