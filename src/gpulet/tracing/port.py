"""What a server knows of whoever traces it."""

from collections.abc import Sequence
from typing import Protocol

from gpulet.core.messages import Command, Event
from gpulet.units import Instant


class Tracing(Protocol):
    """An observer of every step that keeps something back until it is closed."""

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Look at one step's messages, before the commands are carried out."""
        ...

    def close(self) -> None:
        """Send what is left; may block for seconds."""
        ...
