"""Every error that gpulet raises on purpose, and what each branch costs.

    GpuletError
    ├── BadInput            exit code 2: somebody must change a file, a flag or a request
    │   ├── ConfigError     a fleet file: names file, line, key, value and what is allowed
    │   ├── ProfileError    a profile table: names file, row and number
    │   ├── PlanError       a plan that breaks its device; the plan in force stays
    │   ├── ModelError      a model that cannot be read or run; the other models serve
    │   └── RequestError    one request: HTTP `status` (400 unless said), its neighbours are not touched
    └── Unusable            exit code 3: the device or the environment (a port in use, a dead worker)
        ├── NvmlError       an NVML call that failed: the call and NVML's `code`
        ├── CarveError      MIG instances that could not be made; `left` is what is not as before, if anything
        └── MpsError        the MPS control binary or its daemon: the command and what it said
        ├── Unproven        asked for and not shown to hold: nothing is served on it; names the check and its numbers
        └── DeviceError     a call of a device's own interface was refused: names the call and its result
            ├── DeviceFull  no memory: what was asked for is given up, what is loaded serves on
            └── DeviceLost  every later call fails as well: the worker ends and is replaced
    └── ServerError         what a server answered a client of ours: HTTP `status`, 0 where no answer came
        ├── InvalidRequest  4xx: the same request fails again
        ├── NotFound        404
        ├── Overloaded      429, 503: later may do; was tried again as often as the client was told to
        ├── DeadlineExceeded  no answer by the client's deadline, and no further attempt could bring one
        └── Unreachable     no connection: nothing was sent

`assert` guards against our own mistakes; nothing else is raised on purpose.
"""

_LONGEST = 1000
"""Characters of what a client is told: it may quote the client, and travels in a header over gRPC."""


class GpuletError(Exception):
    """The root: everything below carries one clear line with the thing and the number."""

    exit_code = 1


class BadInput(GpuletError):  # noqa: N818 (the tree reads as words, not as classes)
    """Somebody must change a file, a flag or a request."""

    exit_code = 2


class ConfigError(BadInput):
    """A fleet file that cannot be used."""


class ProfileError(BadInput):
    """A profile table that cannot be used, or does not hold what is asked of it."""


class PlanError(BadInput):
    """A plan that breaks its device or its own promises."""


class ModelError(BadInput):
    """A model that cannot be read or run."""


class RequestError(BadInput):
    """One request that cannot be served; `status` is its HTTP status code."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")
        self.status = status


class Unusable(GpuletError):  # noqa: N818
    """The device or the environment cannot be used."""

    exit_code = 3


class NvmlError(Unusable):
    """An NVML call that failed: its name and NVML's return code (`gpulet.executors.nvml.Code`)."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} ({code})")
        self.call = call
        self.code = code


class CarveError(Unusable):
    """MIG instances that could not be made. `left`: one line for each thing that is not as it was before; none: all is."""

    def __init__(self, message: str, left: tuple[str, ...] = ()) -> None:
        super().__init__(f"{message}; {'; '.join(left) if left else 'what stood before stands again'}")
        self.left = left


class MpsError(Unusable):
    """What the MPS control binary was asked (`command`) and why that failed."""

    def __init__(self, command: str, why: str) -> None:
        super().__init__(f"nvidia-cuda-mps-control: {command}: {why}")
        self.command = command
        self.why = why


class Unproven(Unusable):
    """A gpulet that is not shown to be what it was asked to be."""


class DeviceError(Unusable):
    """A call of a device's own interface was refused."""


class DeviceFull(DeviceError):  # noqa: N818
    """The device has no memory for it."""


class DeviceLost(DeviceError):  # noqa: N818
    """The process can use the device no more."""


class ServerError(GpuletError):
    """What a server answered instead of a result; `status` is its HTTP status, 0 where no answer came."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequest(ServerError):  # noqa: N818
    """The request is not one that this server takes."""


class NotFound(ServerError):  # noqa: N818
    """There is no such model, version or page."""


class Overloaded(ServerError):  # noqa: N818
    """The server takes no more now; `retry_after` is the header of that name, empty where there is none."""

    def __init__(self, status: int, message: str, retry_after: str = "") -> None:
        super().__init__(status, message)
        self.retry_after = retry_after


class DeadlineExceeded(ServerError):  # noqa: N818
    """No answer by the deadline; what the server said last is its `__cause__`."""


class Unreachable(ServerError):  # noqa: N818
    """No connection to the server."""
