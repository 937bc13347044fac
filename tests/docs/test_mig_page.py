"""The numbers and outputs of docs/mig.md are the program's own."""

import re

from gpulet.device import KINDS, Device, Mechanism, find_kind
from gpulet.mig import Variant
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.reports.carving import emitted
from gpulet.units import GIB, MS
from servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "mig.md").read_text()
A100 = find_kind("a100-40gb")
SIZES = {size.label: size for size in Device(0, A100, Mechanism.MIG).sizes()}


def gpulet_of(place, device, label, offset, model, processes=1):
    turn = Turn(model, 8, 400.0, 10 * MS)
    return Gpulet(place, device, SIZES[label], offset, 10 * MS, (turn,), processes)


PLAN = Plan(
    tuple(Device(index, A100, Mechanism.MIG) for index in range(3)),
    (
        gpulet_of(0, 0, "4g.20gb", 0, "ranker", processes=2),
        gpulet_of(1, 0, "2g.10gb", 4, "detector"),
        gpulet_of(2, 0, "1g.5gb", 6, "digits"),
        gpulet_of(3, 1, "1g.5gb", 0, "digits"),
        gpulet_of(4, 1, "3g.20gb", 4, "detector"),
    ),
)
"""The plan that the page's outputs are of."""


def cell(t):
    sms, gib = (f"{t.sms}" if t.sms else "?"), (f"{t.memory / GIB:g}" if t.memory else "?")
    return f"{t.label}: {sms}, {gib}"


def rows(slots):
    """The page's table of the kinds with so many slots."""
    for kind in KINDS.values():
        if kind.geometry.slots == slots:
            types = sorted(kind.mig_types, key=lambda t: (t.variant is Variant.MEDIA, t.slices, t.span))
            yield f"| {kind.name} | {kind.sms or '?'} | {' | '.join(map(cell, types))} |"


def test_the_tables_are_the_programs_own():
    for slots in (4, 8):
        for row in rows(slots):
            cells = row.removesuffix(" |").split(" | ")
            assert any(line.startswith(" | ".join(cells)) for line in PAGE.splitlines()), row


def test_the_outputs_are_the_programs_own():
    shown = dict(re.findall(r"`--emit ([\w-]+)`.*?```\w*\n(.*?)```", PAGE, re.DOTALL))
    assert set(shown) == {"mig", "nvidia-smi", "dra", "env"}
    for form, text in shown.items():
        assert text == emitted(PLAN, form), form
