"""MIG's geometry: known numbers, and the rule against everything that can be reached by enumeration."""

import csv
from collections import Counter
from functools import cache
from itertools import product

import pytest

from gpulet.errors import PlanError
from gpulet.mig import (
    GEOMETRIES,
    Geometry,
    Instance,
    Variant,
    change,
    clashes,
    creation_order,
    fits,
    layouts,
    maximal_layouts,
    pack,
)
from gpulet.units import GIB

A100, A30 = GEOMETRIES["a100-40gb"], GEOMETRIES["a30"]
EVERY = tuple(Variant)


def labels(geometry, *variants):
    return tuple(t.label for t in geometry.of(*variants or (Variant.PLAIN,)))


@cache
def reachable(geometry, gpus, *variants):
    """Every vector of counts that some legal layouts of so many GPUs add up to."""
    names = labels(geometry, *variants)
    if not gpus:
        return frozenset({(0,) * len(names)})
    one = {tuple(Counter(i.type.label for i in layout)[n] for n in names) for layout in layouts(geometry, *variants)}
    return frozenset(
        tuple(map(sum, zip(a, b, strict=True))) for a in one for b in reachable(geometry, gpus - 1, *variants)
    )


def box(geometry, gpus, *variants):
    """Every vector up to one instance more of each type than there is room for."""
    best = [max(column) for column in zip(*reachable(geometry, gpus, *variants), strict=True)]
    return product(*(range(n + 2) for n in best))


def legal(geometry, instances, gpus):
    return all(
        not clashes(geometry, [(i.type.label, i.start) for i in instances if i.gpu == gpu]) for gpu in range(gpus)
    ) and all(0 <= i.gpu < gpus for i in instances)


def dominated(counts, all_counts):
    return any(counts != other and not counts - other for other in all_counts)


def test_a_gpu_of_seven_slices_has_19_maximal_layouts_of_298_and_12_multisets_worth_having_of_38():
    every, largest = layouts(A100), maximal_layouts(A100)
    assert (len(every), len(largest)) == (298, 19)
    multisets = {frozenset(Counter(i.type.slices for i in layout).items()) for layout in every}
    assert len(multisets) == 38
    counts = [Counter(dict(m)) for m in multisets]
    undominated = sorted(sorted(c.elements(), reverse=True) for c in counts if not dominated(c, counts))
    assert undominated == [
        [1, 1, 1, 1, 1, 1, 1],
        [2, 1, 1, 1, 1, 1],
        [2, 2, 1, 1, 1],
        [2, 2, 2, 1],
        [3, 1, 1, 1, 1],
        [3, 2, 1, 1],
        [3, 2, 2],
        [3, 3],
        [4, 1, 1, 1],
        [4, 2, 1],
        [4, 3],
        [7],
    ]
    assert len(layouts(A100, Variant.PLAIN, Variant.DOUBLE)) == 723


def test_an_a30_has_5_maximal_layouts_of_26():
    assert (len(layouts(A30)), len(maximal_layouts(A30))) == (26, 5)


def test_every_eight_slot_kind_has_the_same_layouts():
    spans = {
        name: [(t.slices, t.span, t.starts) for t in g.of(Variant.PLAIN, Variant.DOUBLE)]
        for name, g in GEOMETRIES.items()
    }
    assert {name for name, shape in spans.items() if shape == spans["a100-40gb"]} == {
        name for name, g in GEOMETRIES.items() if g.slots == 8
    }
    assert spans["a30"] == spans["rtxpro6000"]


def test_usable_memory_is_less_than_the_name_says_and_unknown_where_nobody_has_said():
    assert GEOMETRIES["a100-40gb"].find("1g.5gb").memory == 4.75 * GIB
    assert GEOMETRIES["h200-141gb"].find("3g.71gb").memory == 0
    for geometry in GEOMETRIES.values():
        for t in geometry.types:
            named = float(t.label.partition(".")[2].partition("gb")[0])
            assert t.memory < named * GIB, t


def test_layouts_with_media_engines_have_one_of_them():
    for layout in layouts(A30, *EVERY):
        assert not clashes(A30, [(i.type.label, i.start) for i in layout])


# The rule


@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_the_rule_and_its_construction_agree_with_enumeration_on_plain_types(gpus):
    names, known = labels(A100), reachable(A100, gpus)
    for vector in (vectors := tuple(box(A100, gpus))):
        counts = dict(zip(names, vector, strict=True))
        assert fits(A100, counts, gpus) == (vector in known), counts
        if vector in known:
            packed = pack(A100, counts, gpus)
            assert Counter(i.type.label for i in packed) == +Counter(counts)
            assert legal(A100, packed, gpus)
    assert len(vectors) == {1: 1_620, 2: 12_288, 3: 50_600}[gpus]


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_rule_agrees_with_enumeration_with_double_memory(gpus):
    variants = (Variant.PLAIN, Variant.DOUBLE)
    names, known = labels(A100, *variants), reachable(A100, gpus, *variants)
    for vector in box(A100, gpus, *variants):
        assert fits(A100, dict(zip(names, vector, strict=True)), gpus) == (vector in known), vector


@pytest.mark.parametrize(("geometry", "gpus"), [(A100, 1), (A100, 2), (A30, 1), (A30, 2), (A30, 3)])
def test_the_rule_and_its_construction_agree_with_enumeration_on_all_types(geometry, gpus):
    """All that can be reached fits, and no step out of it: what fits can always do without one instance."""
    names, known = labels(geometry, *EVERY), reachable(geometry, gpus, *EVERY)
    for vector in known:
        counts = dict(zip(names, vector, strict=True))
        packed = pack(geometry, counts, gpus)
        assert Counter(i.type.label for i in packed) == +Counter(counts)
        assert legal(geometry, packed, gpus)
        for name, n in counts.items():
            more = {**counts, name: n + 1}
            assert fits(geometry, more, gpus) == (tuple(more.values()) in known), more


def test_packing_takes_the_fewest_gpus():
    assert {i.gpu for i in pack(A100, {"3g.20gb": 2, "4g.20gb": 1, "1g.5gb": 3}, 8)} == {0, 1}


def test_counts_that_do_not_fit_are_named():
    with pytest.raises(
        PlanError, match=r"2 x 4g.20gb, 1 x 1g.5gb do not fit on 1 GPUs of 7 compute and 8 memory slices"
    ):
        pack(A100, {"4g.20gb": 2, "1g.5gb": 1, "7g.40gb": 0}, 1)
    with pytest.raises(PlanError, match=r"no MIG type '9g' here; known are 1g.5gb, 1g.10gb, 2g.10gb"):
        fits(A100, {"9g": 1}, 1)
    with pytest.raises(PlanError, match="no MIG type '1g' here; known are none"):
        fits(Geometry(), {"1g": 1}, 1)


# Carrying it out


def instance(label, start, gpu=0):
    return Instance(gpu, A100.find(label), start)


def test_the_larger_are_created_first():
    made = creation_order(
        [
            instance("1g.5gb", 0, 1),
            instance("1g.5gb", 6),
            instance("3g.20gb", 4, 1),
            instance("2g.10gb", 4),
            instance("4g.20gb", 0),
        ]
    )
    assert [(i.gpu, i.type.label) for i in made] == [
        (0, "4g.20gb"),
        (0, "2g.10gb"),
        (0, "1g.5gb"),
        (1, "3g.20gb"),
        (1, "1g.5gb"),
    ]


def test_a_change_leaves_alone_what_stays():
    old = [instance("4g.20gb", 0), instance("2g.10gb", 4), instance("1g.5gb", 6)]
    new = [instance("4g.20gb", 0), instance("3g.20gb", 4)]
    found = change(old, new)
    assert found.keep == (old[0],)
    assert found.destroy == tuple(old[1:])
    assert found.create == (new[1],)
    assert change(new, new).create == ()


SLIPS = {("S2", "0", "2"), ("S3", "0", "1"), ("S3", "0", "2"), ("S3", "0", "3"), ("S3", "0", "4")}
"""Where ParvaGPU's published slots overlap: a 1g at 1 inside a 2g at 0, and 1g at 6 inside 3g at 4."""


def test_the_published_deployments_fit_their_gpus_and_half_of_them_as_they_are_placed(shared_data):
    geometry = GEOMETRIES["a100-80gb"]
    by_slices = {t.slices: t.label for t in geometry.plain}
    gpus = {}
    with (shared_data / "a100_parvagpu" / "deployments.csv").open() as file:
        for row in csv.DictReader(file):
            spot = by_slices[int(row["mig_slices"])], int(row["start_slot"])
            gpus.setdefault((row["scenario"], row["node"], row["gpu"]), []).append(spot)
    assert len(gpus) == 2 + 3 + 5
    assert all(fits(geometry, Counter(label for label, _ in spots), 1) for spots in gpus.values())
    assert {where for where, spots in gpus.items() if clashes(geometry, spots)} == SLIPS
