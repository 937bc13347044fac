"""gpu-lets (ATC'22): saturated batch and rate by size, as its artifact's scheduler computes them on figure 3's profile.

Its latency is 1.1 x (profile + 1.9 x time to join the batch's tensors); rows from the artifact's own code, re-run.
"""

import csv

import pytest

from gpulet.device import find_kind, mps_size
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.profiletable import parse_profile
from gpulet.units import MS

KIND = find_kind("rtx2080ti")


@pytest.fixture(scope="module")
def profile(shared_data):
    text = (shared_data / "rtx2080ti_latency.csv").read_text()
    return parse_profile(text, lambda share: mps_size(KIND, share).sms, "figure 3")


@pytest.fixture(scope="module")
def joining(shared_data):
    with (shared_data / "concat_overhead.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["shape"] == "3x224x224"]
    return [float(row["concat_ms"]) for row in sorted(rows, key=lambda row: int(row["batch"]))]


@pytest.mark.parametrize(
    ("model", "slo_ms", "share_pct", "batch", "rate"),
    [
        ("googlenet", 66, 20, 13, 400.5),
        ("googlenet", 66, 40, 18, 566.9),
        ("googlenet", 66, 100, 21, 662.4),
        ("resnet50", 108, 20, 9, 185.9),
        ("resnet50", 108, 40, 17, 318.7),
        ("resnet50", 108, 100, 24, 454.7),
    ],
)
def test_saturated_batches_and_rates_are_the_artifacts(profile, joining, model, slo_ms, share_pct, batch, rate):
    alone = profile.curve(model, mps_size(KIND, share_pct).sms)
    curve = tuple(round(1.1 * (t + 1.9 * join * MS)) for t, join in zip(alone, joining, strict=True))
    share = Share(curve, slo_ms * MS, 1.0, 31)
    assert saturated(share).batches == (batch,)
    assert saturated_rate(share) == pytest.approx(rate, abs=0.05)
