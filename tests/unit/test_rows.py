from math import log

import numpy as np
import pytest

from gpulet.errors import ConfigError
from gpulet.model import Model
from gpulet.rows import RowDistribution, fixed, lognormal, parse_rows
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, poisson

LOG4 = lognormal(log(4), 0.9)


def test_the_log_normal_has_the_masses_that_were_computed_for_paris():
    small, large = LOG4, lognormal(log(8), 0.9)
    assert small.weights[:5] == pytest.approx((0.1301, 0.1663, 0.1432, 0.1134, 0.0880), abs=6e-5)
    assert large.weights[:5] == pytest.approx((0.0324, 0.0710, 0.0863, 0.0875, 0.0823), abs=6e-5)
    assert (small.mean, large.mean) == pytest.approx((5.65, 9.51), abs=5e-3)
    assert sum(small.weights) == pytest.approx(1)
    assert small.largest == 32


def test_a_percentile_is_the_fewest_rows_that_so_many_do_not_exceed():
    rows = RowDistribution((0.2, 0.2, 0.4, 0.2))
    assert [rows.percentile(p) for p in (1, 20, 21, 80, 95, 100)] == [1, 1, 2, 3, 4, 4]


def test_what_comes_less_than_once_in_a_billion_is_not_likely():
    narrow = lognormal(log(4), 0.3)
    assert narrow.largest == 32
    assert [b for b, _ in narrow.likely] == [b for b in range(1, 33) if narrow.weights[b - 1] >= 1e-9]
    assert len(narrow.likely) < 32


def test_rows_that_never_come_are_not_the_largest():
    assert RowDistribution((0.5, 0.5, 0.0)).largest == 2


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("4", fixed(4)),
        ("lognormal:ln4,0.9", LOG4),
        (f"lognormal:{log(4)},0.9,32", LOG4),
        ("weights:1,1,2", RowDistribution((0.25, 0.25, 0.5))),
    ],
)
def test_rows_are_read_from_text(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("weights:0,0", "sum to 0"),
        ("weights:1,-1", "is -1"),
        ("weights:1,nan", "is nan"),
        ("0", "is 0"),
        ("lognormal:ln4,0", "sigma above 0"),
        ("lognormal:ln4", "lognormal:MU,SIGMA"),
        ("lognormal:100,0.1", "sums to 0"),
        ("many", "'many'"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_number(text, says):
    with pytest.raises(ConfigError, match="rows of a request") as refused:
        parse_rows(text)
    assert says in str(refused.value)


def test_requests_bring_rows_as_distributed_and_arrive_as_without_them():
    model = Model("a", 50 * MS)
    rates, rows = {"a": 2000.0}, {"a": LOG4}
    single = drawn((model,), rates, 20 * SECOND, 1, poisson)
    several = drawn((model,), rates, 20 * SECOND, 1, poisson, rows)
    assert np.array_equal(single.times, several.times)
    assert set(single.rows) == {1}
    assert several.rows.mean() == pytest.approx(LOG4.mean, rel=0.02)
    assert np.bincount(several.rows)[1:6] / len(several) == pytest.approx(LOG4.weights[:5], abs=0.01)
    assert several.rows.max() <= 32
