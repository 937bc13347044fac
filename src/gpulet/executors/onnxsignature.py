"""What an ONNX Runtime session takes and gives, in the Open Inference Protocol's words; imports no runtime itself."""

from collections.abc import Sequence
from typing import Protocol

from gpulet.executors.base import Signature, Tensor

_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Node(Protocol):
    """An input or output of a session; dimensions without a number have a name or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """What an `onnxruntime.InferenceSession` tells of its model."""

    def get_inputs(self) -> Sequence[Node]: ...

    def get_outputs(self) -> Sequence[Node]: ...


def signature_of(session: Session) -> Signature:
    """As the model declares it; raises `ValueError` for types that are not served."""
    inputs = tuple(_tensor(node) for node in session.get_inputs())
    outputs = tuple(_tensor(node) for node in session.get_outputs())
    is_batched = all(t.shape and t.shape[0] == -1 for t in (*inputs, *outputs))
    return Signature(inputs, outputs, is_batched, "onnxruntime_onnx")


def _tensor(node: Node) -> Tensor:
    if node.type not in _ONNX_TYPES:
        msg = f"tensor {node.name} is a {node.type}, which is not served"
        raise ValueError(msg)
    shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in node.shape)
    names = tuple(n if isinstance(n, str) else "" for n in node.shape)
    return Tensor(node.name, _ONNX_TYPES[node.type], shape, names if any(names) else ())
