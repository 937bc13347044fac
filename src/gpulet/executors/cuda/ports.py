"""What is asked of the CUDA driver for one GPU: the narrow port, and the values that pass through it.

Handles are plain integers, so that they can go to `torch.cuda.ExternalStream` and to a log line. Every method raises
`DeviceFull`, `DeviceLost` or `DeviceError`, which name the call and its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from gpulet.units import Duration

Context = NewType("Context", int)
"""A green context."""
Stream = NewType("Stream", int)
Mark = NewType("Mark", int)
"""A CUDA event: a place in a stream's work (an `Event` is what goes into the core)."""


@dataclass(frozen=True, slots=True)
class SmSet:
    """SMs that can be given to a context: how many, and the CUDA driver's own description of which.

    `least` and `alignment`: the fewest SMs and the step that a split of it allows.
    """

    sms: int
    least: int
    alignment: int
    handle: object


@dataclass(frozen=True, slots=True)
class Split:
    """What one split gave: disjoint groups of equal size, in order, and the SMs that were left over, if any."""

    groups: tuple[SmSet, ...]
    remainder: SmSet | None


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of the GPU as a whole."""

    free: int
    total: int


class CudaDriver(Protocol):
    """One GPU. A context and the streams in it belong to the thread that made them, until they are handed over."""

    @property
    def name(self) -> str:
        """What the GPU calls itself."""
        ...

    @property
    def version(self) -> int:
        """The newest CUDA that the driver has: 13000 is 13.0."""
        ...

    def enter(self) -> None:
        """Make the primary context current to this thread; every thread calls it first."""
        ...

    def whole(self) -> SmSet:
        """All SMs of the GPU."""
        ...

    def split(self, whole: SmSet, group: int) -> Split:
        """Cut all SMs into as many groups of `group` SMs as there are. What it gives cannot be split again."""
        ...

    def make_context(self, sets: Sequence[SmSet]) -> Context:
        """A green context on these sets, which must come from one split."""
        ...

    def sms(self, context: Context) -> int:
        """How many SMs the context really has."""
        ...

    def destroy_context(self, context: Context) -> None:
        """Give a context back; its streams must be gone."""
        ...

    def make_stream(self, context: Context | None) -> Stream:
        """A stream that stays on the context's SMs; without one, on all of the GPU's. Never blocked by the null stream."""
        ...

    def context(self, stream: Stream) -> Context | None:
        """The green context that the stream belongs to, as the CUDA driver tells it."""
        ...

    def is_idle(self, stream: Stream) -> bool:
        """Whether all that was put into the stream is done."""
        ...

    def drain(self, stream: Stream) -> None:
        """Wait until all that was put into the stream is done."""
        ...

    def destroy_stream(self, stream: Stream) -> None:
        """Give a stream back."""
        ...

    def make_mark(self) -> Mark:
        """A mark on which a thread can sleep."""
        ...

    def put(self, mark: Mark, stream: Stream) -> None:
        """Set the mark behind all that is in the stream now."""
        ...

    def is_reached(self, mark: Mark) -> bool:
        """Whether the stream has come to the mark."""
        ...

    def wait(self, mark: Mark) -> None:
        """Sleep until the stream has come to the mark."""
        ...

    def elapsed(self, start: Mark, end: Mark) -> Duration:
        """The GPU's time between two marks that are reached."""
        ...

    def destroy_mark(self, mark: Mark) -> None:
        """Give a mark back."""
        ...

    def memory(self) -> DeviceMemory:
        """The GPU's memory now."""
        ...

    def lock_pages(self, address: int, size: int) -> None:
        """Let the GPU copy from and to these pages of the host by itself."""
        ...

    def unlock_pages(self, address: int) -> None:
        """No more."""
        ...

    def sm_ids(self, stream: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """The SMs on which `blocks` blocks really ran that each held its place for `spin`. Waits for them."""
        ...

    def replayed_ids(self, stream: Stream, on: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """As `sm_ids`, by a graph that is captured on `stream` and replayed on another."""
        ...

    def spin(self, stream: Stream, spin: Duration) -> None:
        """Keep one block busy for so long; does not wait."""
        ...

    def close(self) -> None:
        """Let the GPU go."""
        ...
