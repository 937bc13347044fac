"""Model runtimes' exceptions as ours: no memory, a lost GPU, or a model that cannot be run.

They are told apart by CUDA's own words, since runtimes wrap its results in exceptions of several kinds.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gpulet.errors import DeviceFull, DeviceLost, GpuletError, ModelError

_FULL = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "_STATUS_ALLOC_FAILED",
    "Failed to allocate memory",
)
_STICKY = (
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "illegal instruction",
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "hardware stack error",
    "invalid program counter",
    "launch timed out",
    "operation not supported on global/shared address space",
    "context is destroyed",
    "CUDA-capable device(s) is/are busy or unavailable",
    "MPS client",
    "CUDA error: unknown error",
)
"""Parts of what CUDA says of errors after which every later call of the process fails as well."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Whatever a runtime raises inside, as `DeviceFull`, `DeviceLost` or `ModelError`, by name and with its first line."""
    try:
        yield
    except GpuletError:
        raise
    except Exception as error:
        raise error_of(what, error) from error


def error_of(what: str, error: Exception) -> GpuletError:
    """A foreign exception as ours."""
    text = f"{error}" or type(error).__name__
    msg = f"{what}: {text.splitlines()[0]}"
    if any(words in text for words in _STICKY):
        return DeviceLost(msg)
    if isinstance(error, MemoryError) or any(words in text for words in _FULL):
        return DeviceFull(msg)
    return ModelError(msg)
