"""Triton's statistics extension, from counters that are filled by hand."""

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.grpc.service_pb2 import ModelStatisticsResponse

from gpulet.api.catalog import Served
from gpulet.api.statistics import model_statistics
from gpulet.core.messages import Answer, Arrived, Finished, Reason, Reject, Start
from gpulet.core.metrics import Metrics
from gpulet.request import Request
from gpulet.units import MS, NEVER, SECOND
from support import models_of, tiny_plan

BEGAN = 1_700_000_000 * SECOND


@pytest.fixture
def metrics():
    """Requests 1 and 2 run together, 3 alone; 4 is refused."""
    folded = Metrics(["m0", "m1"], tiny_plan([[(4, ["m0", "m1"])]], ["m0", "m1"]))
    folded.record(1 * MS, [Arrived(Request(n, "m0", 1 * MS, NEVER, n)) for n in (1, 2, 3, 4)], [])
    folded.record(3 * MS, [], [Start(1, 0, "m0", "", 3, (1, 2))])
    folded.record(9 * MS, [Finished(1, 1 * MS, 3 * MS)], [Answer(1, (1, 2)), Start(2, 0, "m0", "", 3, (3,))])
    folded.record(14 * MS, [Finished(2, 1 * MS, 4 * MS)], [Answer(2, (3,)), Reject(4, Reason.LATE)])
    return folded


@pytest.fixture
def served():
    return {m.name: Served(m, "7") for m in models_of(2)}


def spent(count, ms):
    return {"count": count, "ns": ms * MS}


def test_statistics_divide_requests_and_batches_as_triton_does(metrics, served):
    (stats,) = model_statistics(metrics, served, BEGAN, "m0", "7")["model_stats"]
    nothing = spent(0, 0)
    assert stats == {
        "name": "m0",
        "version": "7",
        "last_inference": 1_700_000_000_014,
        "inference_count": 6,
        "execution_count": 2,
        "inference_stats": {
            "success": spent(3, 8 + 8 + 13),
            "fail": spent(1, 13),
            "queue": spent(3, 2 + 2 + 8),
            "compute_input": spent(3, 3),
            "compute_infer": spent(3, 3 + 3 + 4),
            "compute_output": spent(3, 2 + 2 + 0),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "response_stats": {},
        "batch_stats": [
            {"batch_size": 3, "compute_input": spent(2, 2), "compute_infer": spent(2, 7), "compute_output": spent(2, 2)}
        ],
        "memory_usage": [],
    }


def test_phases_of_answered_requests_add_up_to_their_time(metrics, served):
    stats = model_statistics(metrics, served, BEGAN, "m0")["model_stats"][0]["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert stats["success"]["ns"] == sum(stats[part]["ns"] for part in parts)


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [("", "", ["m0", "m1"]), ("m1", "", ["m1"]), ("m1", "7", ["m1"]), ("m1", "1", []), ("m2", "", [])],
)
def test_statistics_are_of_the_models_that_were_asked_for(metrics, served, name, version, found):
    assert [s["name"] for s in model_statistics(metrics, served, BEGAN, name, version)["model_stats"]] == found


def test_tritons_own_message_takes_every_field(metrics, served):
    stats = model_statistics(metrics, served, BEGAN)
    message = ParseDict(stats, ModelStatisticsResponse())
    assert message.model_stats[0].inference_stats.success.count == 3
    assert message.model_stats[1].last_inference == 0
    assert set(MessageToDict(message.model_stats[0], preserving_proto_field_name=True)) >= {
        "batch_stats",
        "last_inference",
    }
