"""MLServer's `model-settings.json`, read as the `ModelConfig` that says the same: one version, beside its settings.

MLServer's shapes have the rows in them; where every one begins with -1 they are left out here, as Triton does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gpulet.errors import ModelError
from gpulet.modelconfig import DATA_TYPES, ModelConfig
from gpulet.repository.artifact import Batching, Declaration
from gpulet.repository.files import read_text
from gpulet.repository.taking import Report, check_inside

SETTINGS = "model-settings.json"
_USED = frozenset({"name", "implementation", "parameters", "max_batch_size", "inputs", "outputs"})
_USED_PARAMETERS = frozenset({"uri", "version"})
_NOT_USED = frozenset(
    {"max_batch_time", "platform", "versions", "parallel_workers", "warm_workers", "metadata", "tags", "cache_enabled"}
)
_NOT_USED_PARAMETERS = frozenset(
    {"content_type", "format", "extra", "environment_path", "environment_tarball", "inference_pool_gid"}
)


_Size = Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)]


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[_Size, ...]


class _Parameters(msgspec.Struct):
    uri: str | None = None
    version: str | None = None


class _Settings(msgspec.Struct):
    name: str
    implementation: str
    parameters: _Parameters | None = None
    max_batch_size: _Size = 0
    inputs: tuple[_Tensor, ...] = ()
    outputs: tuple[_Tensor, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """What a settings file says: the model's name, its one version, its file, and what Triton would call its config."""

    name: str
    version: str
    uri: str
    declaration: Declaration
    report: Report


def read_settings(path: Path) -> Settings:
    """Raises `ModelError` for what is not settings, or not of a model that we serve."""
    text = read_text(path)
    try:
        settings = msgspec.json.decode(text, type=_Settings)
        document = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        msg = f"{SETTINGS}: {error}"
        raise ModelError(msg) from None
    if "onnx" not in settings.implementation.lower():
        msg = f"implementation {settings.implementation!r} is not served; served are those of ONNX models"
        raise ModelError(msg)
    parameters = settings.parameters or _Parameters()
    uri = parameters.uri or "model.onnx"
    if "://" in uri:
        msg = f"parameters.uri {uri!r} is not a file; nothing is fetched"
        raise ModelError(msg)
    check_inside("parameters.uri", uri)
    version = parameters.version or "1"
    is_number = version.isdecimal() and version.isascii()
    report = _report(document, [] if is_number else ["parameters.version"])
    return Settings(settings.name, version if is_number else "1", uri, _declaration(settings), report)


def name_of(path: Path, otherwise: str) -> str:
    """What a settings file calls its model, for a message about what is wrong in it."""
    try:
        return str(msgspec.json.decode(read_text(path), type=dict[str, Any])["name"])
    except (ModelError, KeyError, msgspec.MsgspecError, RecursionError):
        return otherwise


def _report(document: dict[str, Any], not_used: Sequence[str]) -> Report:
    inner = document.get("parameters") or {}
    ignored = [key for key in document if key in _NOT_USED]
    ignored += [f"parameters.{key}" for key in inner if key in _NOT_USED_PARAMETERS]
    unknown = [key for key in document if key not in _USED | _NOT_USED]
    unknown += [f"parameters.{key}" for key in inner if key not in _USED_PARAMETERS | _NOT_USED_PARAMETERS]
    return Report(tuple(unknown), (*ignored, *not_used))


def _declaration(settings: _Settings) -> Declaration:
    tensors = (*settings.inputs, *settings.outputs)
    has_rows = all(t.shape[:1] == (-1,) for t in tensors)
    most = max(0, settings.max_batch_size) if has_rows else 0
    config = ModelConfig(name=settings.name, platform="onnxruntime_onnx", max_batch_size=most)
    for kind, given in ((config.input, settings.inputs), (config.output, settings.outputs)):
        for tensor in given:
            kind.add(name=tensor.name, data_type=_type(tensor), dims=tensor.shape[1:] if has_rows else tensor.shape)
    is_written = bool(most) or not has_rows
    return Declaration(config, Batching.AS_WRITTEN if is_written else Batching.BY_MODEL)


def _type(tensor: _Tensor) -> str:
    name = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    if name not in DATA_TYPES:
        msg = f"{SETTINGS}: tensor {tensor.name} is a {tensor.datatype!r}"
        raise ModelError(msg)
    return name
