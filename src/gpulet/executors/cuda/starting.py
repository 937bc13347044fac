"""How a worker that is to hold a GPU begins: what it imports while it stands by, what its environment becomes, what opens."""

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from gpulet.device import Kind
from gpulet.executors.green import OpenGpu
from gpulet.executors.wire import WorkerModel

OpenModels = Callable[[Sequence[WorkerModel], Kind], OpenGpu]
"""What opens the GPU, planned as one of that kind, with runtimes of these models; called once the environment is set."""


def find_opener(name: str) -> OpenModels:
    """`module:function` of ours, imported before there is anything to do."""
    module, _, function = name.partition(":")
    found: OpenModels = getattr(importlib.import_module(module), function)
    return found


def import_all(modules: Iterable[str]) -> None:
    """A runtime that is not installed is told by the models that need it."""
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)


def enter(environment: Mapping[str, str]) -> None:
    """Before CUDA starts; what names somebody else's MPS daemon goes, since a foreign share would apply."""
    for name in [name for name in os.environ if name.startswith("CUDA_MPS_")]:
        del os.environ[name]
    os.environ.update(environment)
