"""Every field of Triton's `ModelConfig`, and what we do with it: used, not used (reported), or refused with a reason.

A line stands for a field and everything in it. `docs/triton.md` shows this table; a test proves that it is whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final


class Use(StrEnum):
    """What becomes of a field that is set."""

    USED = "used"
    NOT_USED = "not used"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`about`: what it is used for, why it is not used, or why a model that sets it is refused."""

    use: Use
    about: str


_PLAN = "replicas, and what of a device they get, are the plan's to decide"
_RAGGED = "ragged batches are not built: requests of a batch agree in their shapes"
_TENSORRT = "TensorRT's tensors; its plans are not served"
_USED: Mapping[str, str] = {
    "name": "must be the folder's name where it is given",
    "platform": "onnxruntime_onnx or pytorch_libtorch; others are refused",
    "backend": "onnxruntime or pytorch; others are refused",
    "version_policy": "the versions that may serve; the highest of them does, the others are reported",
    "max_batch_size": "most rows of a batch; 0: no batching, `dims` are whole shapes; left out beside `input` and `output`: "
    "what the model can",
    "input.name": "compared with the model",
    "input.data_type": "compared with the model",
    "input.dims": "compared with the model, without the rows where `max_batch_size` is above 0",
    "input.reshape": "refused unless it changes nothing",
    "output.name": "compared with the model",
    "output.data_type": "compared with the model",
    "output.dims": "as of inputs",
    "output.reshape": "refused unless it changes nothing",
    "output.label_filename": "labels of the classification extension, a line for each index",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": "the objective (SLO), where no parameter says it",
    "dynamic_batching.default_queue_policy.max_queue_size": "requests that may wait, at most `[limits] max_queue`",
    "dynamic_batching.max_queue_delay_microseconds": "how long a request may wait for its batch to fill while a gpulet is idle, "
    "where the fleet file does not say it (`max_queue_delay_us`)",
    "default_model_filename": "the file in a version's folder, instead of `model.onnx`, `model.pt2` or `model.pt`",
    "parameters": "`gpulet.slo_ms` (the objective) and `gpulet.shapes` (free dimensions, `224x224 448x448`); others are "
    "reported as not used",
}
_NOT_USED: Mapping[str, str] = {
    "runtime": "the backend's own library runs the model",
    "input.format": "tensors come in the order the model declares",
    "optimization.graph": "the runtime's own graph optimisations are on",
    "optimization.priority": "shares of a device are the plan's to decide",
    "optimization.cuda": "what can be captured as CUDA graphs is",
    "optimization.input_pinned_memory": "tensors travel through memory that is shared with the worker",
    "optimization.output_pinned_memory": "tensors travel through memory that is shared with the worker",
    "optimization.gather_kernel_buffer_threshold": "inputs are put together before they are copied",
    "optimization.eager_batching": "batches are put together when a gpulet is free",
    "dynamic_batching.preferred_batch_size": "batches are as large as objectives allow",
    "dynamic_batching.preserve_ordering": "answers of one HTTP connection leave in order, others as they are ready",
    "dynamic_batching.priority_levels": "any `priority` of a request counts, 1 first",
    "dynamic_batching.default_priority_level": "a request that names no priority comes after those that do",
    "dynamic_batching.priority_queue_policy": "one objective and one bound for all priorities",
    "dynamic_batching.default_queue_policy.timeout_action": "what is predicted late or past its deadline is given up",
    "dynamic_batching.default_queue_policy.allow_timeout_override": "a request's own timeout always counts, up to the objective",
    "instance_group": _PLAN,
    "metric_tags": "metrics carry the model's name and version",
    "model_warmup": "every model is warmed with its own batch sizes before it is ready",
    "model_metrics": "metrics have one set of buckets for all models",
}
_REFUSED: Mapping[str, str] = {
    "input.is_shape_tensor": _TENSORRT,
    "input.allow_ragged_batch": _RAGGED,
    "input.optional": "a request brings every input",
    "input.is_non_linear_format_io": _TENSORRT,
    "output.is_shape_tensor": _TENSORRT,
    "output.is_non_linear_format_io": _TENSORRT,
    "batch_input": _RAGGED,
    "batch_output": _RAGGED,
    "optimization.execution_accelerators": "models run on the runtime's own CPU or CUDA provider",
    "sequence_batching": "no state is kept between requests",
    "ensemble_scheduling": "write the stages as `[[applications]]` of a fleet file",
    "cc_model_filenames": "one file is served on every kind of device",
    "model_operations": "libraries of custom operators are not loaded",
    "model_transaction_policy.decoupled": "every request has exactly one answer",
    "model_repository_agents": "no agent is run before a model is loaded",
    "response_cache.enable": "answers are not cached",
}
VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(
    {
        **{path: Verdict(Use.USED, about) for path, about in _USED.items()},
        **{path: Verdict(Use.NOT_USED, about) for path, about in _NOT_USED.items()},
        **{path: Verdict(Use.REFUSED, about) for path, about in _REFUSED.items()},
    }
)


def verdicts_of(config: Any) -> dict[str, Verdict]:
    """Of the fields that this message sets, by path."""
    return dict(_found(config, ""))


def _found(message: Any, path: str) -> Iterator[tuple[str, Verdict]]:
    for field, value in message.ListFields():
        here = f"{path}{field.name}"
        if here in VERDICTS:
            yield here, VERDICTS[here]
        else:
            assert field.message_type, f"{here} has no verdict"
            is_several = not hasattr(value, "ListFields")
            for part in value if is_several else (value,):
                yield from _found(part, f"{here}.")
