"""The executor's port: it carries out what the core commands and answers with events."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from gpulet.core.messages import Event, Load, Start, Unload
from gpulet.units import Instant

Emit: TypeAlias = Callable[[Event], None]
"""Hands an event to the driver, at the driver's time."""


class Timer(Protocol):
    """The driver's clock, as an executor may use it."""

    def now(self) -> Instant:
        """The driver's time."""
        ...

    def at(self, when: Instant, wake: Callable[[int], None], token: int) -> None:
        """Call `wake(token)` at `when`; never earlier."""
        ...


class Executor(Protocol):
    """Carries out commands. Every `start` is followed by exactly one Finished, RunFailed or GpuletDown."""

    def start(self, command: Start) -> None:
        """Run a batch."""
        ...

    def load(self, command: Load) -> None:
        """Make a model resident; emits `Loaded`."""
        ...

    def unload(self, command: Unload) -> None:
        """Take a model off; emits `Unloaded`."""
        ...
