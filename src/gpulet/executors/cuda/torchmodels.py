"""Model files of PyTorch: exported programs (`.pt2`) and TorchScript (`.pt`). What a file says is data, never code of Python.

An exported program tells its signature itself. TorchScript has none, so `signature.json` stands beside it:

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [{"name": "y", ...}]}

with -1 for any size; the first dimension counts rows where all tensors begin with -1.
"""

import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from gpulet.errors import ModelError
from gpulet.executors.base import DATATYPE_SIZES, Signature, Tensor
from gpulet.executors.cuda.staging import tensor_size
from gpulet.executors.cuda.torchsizes import sizes_of
from gpulet.executors.tensors import NUMPY_TYPES, filled

Run: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
_SCRIPT_FACTOR = 16
"""TorchScript says nothing of its activations: so many times its inputs and outputs, until a capture was measured."""


@dataclass(slots=True)
class Resident:
    """A model on its device. `tensors` are all it holds there, in `memory`, which is its own."""

    run: Run
    tensors: Sequence[torch.Tensor]
    memory: Any = None

    def release(self) -> None:
        """Give the memory back now: modules stand in reference cycles, and a collection would stall what serves."""
        for tensor in self.tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        self.memory = None


@dataclass(slots=True)
class ModelFile:
    """What a file says: the signature, bytes of weights, bytes of activations by (rows, shape); and how to load it."""

    signature: Signature
    weights: int
    activations: Callable[[int, str], int]
    load: Callable[[torch.device], Resident] = field(repr=False)


def read(model: str, path: str) -> ModelFile:
    """Into the host's memory; raises `ModelError` for what is no such file or is not served."""
    return read_exported(model, path) if Path(path).suffix == ".pt2" else read_script(model, path)


def read_exported(model: str, path: str) -> ModelFile:
    """A file of `torch.export.save`."""
    _refuse_objects(model, path)
    with _no_pickles():
        program = torch.export.load(path)
    nodes = {node.name: node for node in program.graph.nodes}
    given, gives = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    inputs, outputs = [_value(model, nodes, name) for name in given], [_value(model, nodes, name) for name in gives]
    firsts = [value.shape[0] if value.dim() else None for value in (*inputs, *outputs)]
    is_batched = bool(firsts) and all(isinstance(n, torch.SymInt) and str(n) == str(firsts[0]) for n in firsts)
    signature = Signature(
        tuple(_tensor(model, name, value) for name, value in zip(given, inputs, strict=True)),
        tuple(_tensor(model, name, value) for name, value in zip(_names(program), outputs, strict=True)),
        is_batched,
        "torch_export",
    )
    sizes = sizes_of(program.graph, given)
    weights = sum(_bytes(t) for t in _held(program))

    def activations(rows: int, shape: str) -> int:
        return sizes.peak(filled(signature, rows, shape))

    return ModelFile(signature, weights, activations, lambda device: _load_exported(program, device))


def read_script(model: str, path: str) -> ModelFile:
    """A file of `torch.jit.save`, with its sidecar."""
    signature = read_signature(model, Path(path).with_name("signature.json"))
    with warnings.catch_warnings():
        # PyTorch advises torch.export; whoever has only a TorchScript file is served all the same
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        module = torch.jit.load(path, map_location="cpu").eval()
    weights = sum(_bytes(t) for t in _of_module(module))

    def activations(rows: int, shape: str) -> int:
        shapes = filled(signature, rows, shape)
        ins = sum(tensor_size(t, dims) for t, dims in zip(signature.inputs, shapes, strict=True))
        outs = sum(rows * prod(abs(n) for n in t.shape) * DATATYPE_SIZES[t.datatype] for t in signature.outputs)
        return _SCRIPT_FACTOR * (ins + outs)

    def load(device: torch.device) -> Resident:
        moved = module.to(device)
        return Resident(lambda inputs: _flat(moved(*inputs)), _of_module(moved))

    return ModelFile(signature, weights, activations, load)


class _Sidecar(msgspec.Struct, forbid_unknown_fields=True):
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read_signature(model: str, path: Path) -> Signature:
    """A TorchScript model's sidecar; raises `ModelError` that says what is needed."""
    if not path.is_file():
        msg = f"model {model}: TorchScript does not tell its shapes; {path.name} must stand beside it, with inputs and "
        raise ModelError(msg + "outputs as lists of name, datatype and shape")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Sidecar)
    except msgspec.DecodeError as error:
        msg = f"model {model}: {path.name}: {error}"
        raise ModelError(msg) from None
    for tensor in (*found.inputs, *found.outputs):
        if tensor.datatype not in NUMPY_TYPES or any(n < 1 and n != -1 for n in tensor.shape):
            msg = f"model {model}: {path.name}: {tensor.name} of {tensor.datatype} {list(tensor.shape)} is not served"
            raise ModelError(msg)
        if len(tensor.dims) not in {0, len(tensor.shape)}:
            msg = f"model {model}: {path.name}: {tensor.name} has {len(tensor.shape)} dimensions and names for {len(tensor.dims)}"
            raise ModelError(msg)
    is_batched = all(t.shape[:1] == (-1,) for t in (*found.inputs, *found.outputs))
    return Signature(found.inputs, found.outputs, is_batched, "pytorch_libtorch")


def _load_exported(program: torch.export.ExportedProgram, device: torch.device) -> Resident:
    """Moves what the file's graph itself makes on a device, too, which a module's `to` would not."""
    moved = move_to_device_pass(program, device)
    module, spec = moved.module(), moved.call_spec.in_spec

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        given, named = pytree.tree_unflatten(list(inputs), spec)
        return _flat(module(*given, **named))

    return Resident(run, [*_held(moved), *_of_module(module)])


def _flat(found: Any) -> Sequence[torch.Tensor]:
    leaves: list[torch.Tensor] = pytree.tree_leaves(found)
    return leaves


def _names(program: torch.export.ExportedProgram) -> list[str]:
    """The keys of a dictionary of outputs, or what the graph calls them; one that comes twice gets its number."""
    plain = [str(name) for name in program.graph_signature.user_outputs]
    spec = program.call_spec.out_spec
    if spec is not None:
        paths = [path for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(plain, spec))[0]]
        keys = [getattr(path[0], "key", None) if len(path) == 1 else None for path in paths]
        plain = [key if isinstance(key, str) else name for key, name in zip(keys, plain, strict=True)]
    return [name if plain.index(name) == n else f"{name}_{n}" for n, name in enumerate(plain)]


def _value(model: str, nodes: Mapping[str, Any], name: object) -> torch.Tensor:
    value = nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None
    if not isinstance(value, torch.Tensor):
        msg = f"model {model}: {name} is no tensor; only tensors are served as inputs and outputs"
        raise ModelError(msg)
    return value


def _tensor(model: str, name: object, value: torch.Tensor) -> Tensor:
    if value.dtype not in DTYPES:
        msg = f"model {model}: tensor {name} is a {value.dtype}, which is not served"
        raise ModelError(msg)
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape)
    dims = tuple("" if isinstance(n, int) else str(n) for n in value.shape)  # a free dimension's name, as `s0`
    return Tensor(str(name), DTYPES[value.dtype], shape, dims if any(dims) else ())


def _held(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    return [t for t in (*program.state_dict.values(), *program.constants.values()) if isinstance(t, torch.Tensor)]


def _of_module(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensor: torch.Tensor) -> int:
    return int(tensor.nbytes)


def _refuse_objects(model: str, path: str) -> None:
    """Objects in a `.pt2` are pickles, which may do anything when they are read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [Path(name).name for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        msg = f"model {model}: {Path(path).name}: {getattr(error, 'strerror', None) or error}"
        raise ModelError(msg) from None
    found = next((name for name in names if name.startswith(("custom_obj_", "opaque_obj_"))), None)
    if found:
        msg = f"model {model}: {Path(path).name} holds a pickled object ({found}); only tensors are read"
        raise ModelError(msg)


@contextmanager
def _no_pickles() -> Iterator[None]:
    """`torch.export.load` may call `torch.load` for odd tensors and sample inputs; this has it read tensors only."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
