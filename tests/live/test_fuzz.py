"""Some thousand malformed requests over HTTP and gRPC at a live server; `benchmarks/fuzz.py` sends 100,000."""

import sys

import pytest

from servers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import fuzz

KNOWN_AT_START = {"starting", "planned", "not_cut_as_asked"}


@pytest.mark.slow
def test_malformed_requests_are_refused_one_by_one_and_hurt_nobody():
    found = fuzz.run(3000, "both", 7, is_heavy=False)
    assert found["wrong"] == []
    assert found["died"] == 0
    assert set(found["noise"][1:]) <= KNOWN_AT_START
    assert found["probe"]["wrong"] == 0
    before, after = found["descriptors"]
    assert after <= before + fuzz.WORKERS["http"] + 2, "descriptors of connections that are still closing at most"
    assert found["memory_mib"]["last tenth"] - found["memory_mib"]["second tenth"] < 100
