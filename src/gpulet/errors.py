"""Every error that gpulet raises on purpose, and what each branch costs.

    GpuletError
    ├── BadInput            exit code 2: somebody must change a file, a flag or a request
    │   ├── ConfigError     a fleet file: names file, line, key, value and what is allowed
    │   ├── ProfileError    a profile table: names file, row and number
    │   ├── PlanError       a plan that breaks its device; the plan in force stays
    │   ├── ModelError      a model that cannot be read or run; the other models serve
    │   └── RequestError    one request: HTTP `status` (400 unless said), its neighbours are not touched
    └── Unusable            exit code 3: the device or the environment (a port in use, a dead worker)
        ├── Unproven        asked for and not shown to hold: nothing is served on it; names the check and its numbers
        └── DeviceError     a call of a device's own interface was refused: names the call and its result
            ├── DeviceFull  no memory: what was asked for is given up, what is loaded serves on
            └── DeviceLost  every later call fails as well: the worker ends and is replaced

`assert` guards against our own mistakes; nothing else is raised on purpose.
"""


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
        super().__init__(message)
        self.status = status


class Unusable(GpuletError):  # noqa: N818
    """The device or the environment cannot be used."""

    exit_code = 3


class Unproven(Unusable):
    """A gpulet that is not shown to be what it was asked to be."""


class DeviceError(Unusable):
    """A call of a device's own interface was refused."""


class DeviceFull(DeviceError):  # noqa: N818
    """The device has no memory for it."""


class DeviceLost(DeviceError):  # noqa: N818
    """The process can use the device no more."""
