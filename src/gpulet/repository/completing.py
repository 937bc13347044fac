"""A configuration and the model it is of: what the file leaves out is told by the model, what it says must be true of it."""

from collections.abc import Iterable
from typing import Any

from gpulet.errors import ModelError
from gpulet.executors.base import Signature, Tensor
from gpulet.modelconfig import DATA_TYPES, ModelConfig
from gpulet.repository.artifact import Batching, Declaration

_BACKENDS = {"onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch"}


def complete(declaration: Declaration, name: str, signature: Signature, max_batch: int) -> Any:
    """A `ModelConfig` with everything in it; `max_batch` is what the model is served with, where its file does not say."""
    config = ModelConfig()
    config.CopyFrom(declaration.config)
    config.name = name
    config.platform = config.platform or signature.platform
    config.backend = config.backend or _BACKENDS.get(config.platform, "")
    if declaration.batching is Batching.BY_MODEL:
        config.max_batch_size = max_batch if signature.is_batched else 0
    leave_out = 1 if config.max_batch_size else 0
    for kind, tensors in ((config.input, signature.inputs), (config.output, signature.outputs)):
        for tensor in tensors if not kind else ():
            kind.add(name=tensor.name, data_type=_type(tensor), dims=tensor.shape[leave_out:])
    return config


def check(declaration: Declaration, signature: Signature) -> None:
    """Raise `ModelError`, one line, where the model is not as its file says: tensor, what was expected, what was found.

    A dimension that the model leaves free may be any number in the file, as in Triton.
    """
    config = declaration.config
    is_written = declaration.batching is Batching.AS_WRITTEN
    if is_written and config.max_batch_size and not signature.is_batched:
        msg = f"max_batch_size is {config.max_batch_size}, but the model does not batch: its tensors do not have a row for each row"
        raise ModelError(msg)
    has_rows = bool(config.max_batch_size) if is_written else signature.is_batched
    _check("input", config.input, signature.inputs, has_rows=has_rows)
    _check("output", config.output, signature.outputs, has_rows=has_rows)
    missing = [t.name for t in signature.inputs if t.name not in {given.name for given in config.input}]
    if config.input and missing:
        msg = f"input {missing[0]} of the model is not in its configuration"
        raise ModelError(msg)
    if signature.is_batched and not has_rows:
        _refuse_rows(config)


def _refuse_rows(config: Any) -> None:
    """Without batching a request of such a model has one row: more of them in one request would be its batch."""
    for tensor in (*config.input, *config.output):
        if tensor.dims[0] not in {-1, 1}:
            msg = f"{tensor.name}: the model's first dimension counts rows, dims has {tensor.dims[0]}: "
            raise ModelError(msg + "write it as max_batch_size, and the other dims without it")


def _check(kind: str, given: Iterable[Any], tensors: Iterable[Tensor], *, has_rows: bool) -> None:
    known = {tensor.name: tensor for tensor in tensors}
    for item in given:
        if item.name not in known:
            msg = f"{kind} {item.name}: the model has {', '.join(known) or 'none'}"
            raise ModelError(msg)
        tensor = known[item.name]
        if DATA_TYPES[item.data_type] != _type(tensor):
            msg = f"{kind} {item.name}: expected {DATA_TYPES[item.data_type]}, the model has {_type(tensor)}"
            raise ModelError(msg)
        expected = [-1, *item.dims] if has_rows else list(item.dims)
        found = list(tensor.shape)
        if len(expected) != len(found) or any(n not in {-1, want} for want, n in zip(expected, found, strict=True)):
            msg = f"{kind} {item.name}: expected shape {expected}, the model has {found}"
            raise ModelError(msg)


def as_json(config: Any) -> dict[str, Any]:
    """As Triton's `/v2/models/NAME/config` has it."""
    return {
        field.name: _plain(field, getattr(config, field.name))
        for field in config.DESCRIPTOR.fields
        if not field.has_presence or config.HasField(field.name)
    }


def _plain(field: Any, value: Any) -> Any:
    """Numbers as numbers: protobuf's own JSON has those of 64 bits as text, Triton's has not."""
    if field.message_type and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _plain(of, value[key]) for key in value}
    if field.has_presence or isinstance(value, str | bytes | int | float):
        return _single(field, value)
    return [_single(field, item) for item in value]


def _single(field: Any, value: Any) -> Any:
    if field.message_type:
        return as_json(value)
    return field.enum_type.values_by_number[value].name if field.enum_type else value


def _type(tensor: Tensor) -> str:
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
