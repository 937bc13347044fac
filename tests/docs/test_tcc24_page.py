"""The tables of docs/tcc24.md against what the issue of D-STACK asks of them, and against the code."""

import re
from pathlib import Path

import pytest

from gpulet.reproduce.tcc24.cases import Case, find_mix, row
from gpulet.reproduce.tcc24.report import COMPUTED

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tcc24.md").read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


COMPARED = [cells(line) for line in PAGE.splitlines() if re.match(r"\| (C-\d|convnets), [\w-]+ \| ", line)]


def table(title):
    """Rows of the first table under a heading, by their first cell."""
    lines = PAGE.split(f"\n### {title}\n", 1)[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    header, rows = cells(lines[start]), {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found = line.strip().removeprefix("|").removesuffix("|").split("|")
        rows[found[0].strip()] = dict(zip(header, (cell.strip() for cell in found), strict=True))
    return rows


def numbers(text):
    return [float(part) for part in text.split(" / ")]


@pytest.mark.parametrize("line", COMPARED, ids=lambda line: line[0])
def test_every_row_is_within_two_percent_of_the_calculation(line):
    _, totals, useful, theirs, ours = line
    assert numbers(totals)[1] == pytest.approx(numbers(totals)[0], rel=0.02)
    assert numbers(useful)[1] == pytest.approx(numbers(useful)[0], abs=1)
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=0.02)


def test_every_row_of_the_calculation_is_compared():
    assert {tuple(line[0].split(", ")) for line in COMPARED} == set(COMPUTED)


def test_dstack_is_four_times_temporal_and_fair_and_misses_nothing():
    four = table("C-4")
    assert float(four["dstack"]["images/s"]) / float(four["temporal"]["images/s"]) == pytest.approx(4, rel=0.05)
    assert float(four["dstack"]["Jain"].split(" / ")[0]) >= 0.97
    assert float(four["dstack"]["least over mean"].split(" / ")[0]) >= 0.85
    assert [float(table(mix)["dstack"]["misses"]) for mix in ("C-2", "C-3", "C-4")] == [0, 0, 0]


def test_dstack_is_within_a_tenth_of_the_ideal_on_the_convnets():
    convnets = table("convnets")
    ratio = float(convnets["dstack"]["images/s"]) / float(convnets["ideal-kernels"]["images/s"])
    assert 0.9 <= ratio <= 1


@pytest.mark.parametrize("mix", ["C-2", "C-3", "C-4", "C-7", "convnets"])
def test_the_page_shows_what_the_code_gives(mix):
    found = row(Case(find_mix(mix)), "dstack")
    assert float(table(mix)["dstack"]["images/s"]) == pytest.approx(found["total_per_s"], abs=0.6)
    assert float(table(mix)["dstack"]["misses"]) == pytest.approx(found["misses_per_window"], abs=0.006)


def test_every_picture_is_there():
    pictures = re.findall(r"\]\((tcc24-[\w-]+\.png)\)", PAGE)
    assert len(pictures) == 4
    assert all((DOCS / picture).exists() for picture in pictures)


def test_ours_is_never_behind_any_other_system_and_starves_nobody():
    lines = PAGE.split("\n## Ours against every other system\n", 1)[1].splitlines()
    rows = [cells(line) for line in lines if re.match(r"\| (C-\d|random \d+), ", line)]
    assert len({row[0] for row in rows}) == 24
    assert [row[2] for row in rows] == ["60%", "80%", "95%"] * 24
    assert {row[5] for row in rows} == {"none"}
    assert min(float(row[7]) for row in rows) >= 0.995
