"""An imaginary GPU behind the port of `CudaDriver`: for tests, and for scripts that must run to their end without one.

It keeps the rules that a real driver keeps (one split, merges of one split's groups, streams before contexts), its ids
of SMs are interleaved so that nobody takes them for consecutive, and time passes only as its own calls take it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from gpulet.errors import DeviceError, DeviceLost
from gpulet.executors.cuda.ports import Context, DeviceMemory, Mark, SmSet, Split, Stream
from gpulet.units import GIB, MIB, US, Duration, Instant

CONTEXT_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class Topology:
    """What a die gives when it is split into groups of eight SMs."""

    sms: int
    groups: int
    least: int = 8
    alignment: int = 8


TOPOLOGIES: Mapping[str, Topology] = {
    "h200": Topology(132, 16),
    "h200-15": Topology(132, 15),
    "a100": Topology(108, 13, 4, 2),
    "v100": Topology(80, 10, 2, 2),
    "rtx2080ti": Topology(68, 8, 2, 2),
    "t4": Topology(40, 5, 2, 2),
}
"""By kind of GPU; dies differ in what is fused off, and `h200-15` is one that gives a group less (15 x 8 + 12)."""


@dataclass(slots=True)
class Faults:
    """What this GPU does otherwise than hoped; on a real one some of it is an open question.

    `crowded_rounds`: in so many calls of `sm_ids` a neighbour's kernel keeps half of the SMs full.
    """

    is_confining: bool = True
    graphs_stay: bool = True
    sets_merge_with_remainder: bool = True
    missing_sms: int = 0
    queues: int = 32
    crowded_rounds: int = 0
    broken: dict[str, tuple[int, DeviceError]] = field(default_factory=dict)

    def break_call(self, name: str, error: DeviceError, after: int = 0) -> None:
        """Let the call of that name fail once, after so many that go well; after a `DeviceLost` all calls fail."""
        self.broken[name] = (after, error)


@dataclass(frozen=True, slots=True)
class _Ids:
    """A fake's handle of an SM set: which SMs, and of which split."""

    ids: frozenset[int]
    split: int


class FakeCudaDriver:
    """One imaginary GPU."""

    def __init__(self, topology: Topology = TOPOLOGIES["h200"], memory: int = 141 * GIB) -> None:
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        self.now: Instant = 0
        self.lost: DeviceLost | None = None
        self.used = 0
        self._topology = topology
        self._memory = memory
        self._serial = 0
        self._contexts: dict[Context, frozenset[int]] = {}
        self._streams: dict[Stream, tuple[Context | None, int]] = {}
        self._queues: dict[int, Instant] = {}
        self._ends: dict[Stream, Instant] = {}
        self._marks: dict[Mark, Instant] = {}
        self._locked: set[int] = set()

    @property
    def name(self) -> str:
        """What the GPU calls itself."""
        return f"imaginary GPU of {self._topology.sms} SMs"

    @property
    def version(self) -> int:
        """13.0."""
        return 13000

    @property
    def live(self) -> int:
        """Contexts, streams, marks and locked pages that are not given back."""
        return len(self._contexts) + len(self._streams) + len(self._marks) + len(self._locked)

    def enter(self) -> None:
        """Every thread sees this GPU."""
        self._call("enter")

    def whole(self) -> SmSet:
        """All SMs of the GPU."""
        self._call("whole")
        return self._set(frozenset(range(self._topology.sms)), 0)

    def split(self, whole: SmSet, group: int) -> Split:
        """Groups of interleaved ids."""
        self._call("split")
        handle = _ids(whole)
        if handle.split:
            _refuse("split", "INVALID_RESOURCE_TYPE (914)")
        count = min(self._topology.groups, whole.sms // group)
        self._serial += 1
        dealt = [frozenset(range(g, count * group, count)) for g in range(count)]
        rest = frozenset(range(count * group, whole.sms))
        groups = tuple(self._set(ids, self._serial) for ids in dealt)
        return Split(groups, self._set(rest, self._serial) if rest else None)

    def make_context(self, sets: Sequence[SmSet]) -> Context:
        """On sets of one split only."""
        self._call("make_context")
        handles = [_ids(s) for s in sets]
        mixes = len({h.split for h in handles}) != 1
        odd = len({s.sms for s in sets}) > 1 and not self.faults.sets_merge_with_remainder
        if mixes or odd:
            _refuse("make_context", "INVALID_RESOURCE_CONFIGURATION (914)")
        self.used += CONTEXT_BYTES
        self._serial += 1
        made = Context(self._serial)
        self._contexts[made] = frozenset().union(*(h.ids for h in handles))
        return made

    def sms(self, context: Context) -> int:
        """How many SMs the context really has."""
        self._call("sms")
        return len(self._contexts[context]) - self.faults.missing_sms

    def destroy_context(self, context: Context) -> None:
        """Its streams must be gone."""
        self._call("destroy_context")
        if any(c == context for c, _ in self._streams.values()):
            _refuse("destroy_context", "a stream outlives its context")
        del self._contexts[context]
        self.used -= CONTEXT_BYTES

    def make_stream(self, context: Context | None) -> Stream:
        """Hardware queues are dealt out in turn."""
        self._call("make_stream")
        assert context is None or context in self._contexts, "a stream in a context that is gone"
        self._serial += 1
        made = Stream(self._serial)
        self._streams[made] = (context, self.calls["make_stream"] % self.faults.queues)
        return made

    def context(self, stream: Stream) -> Context | None:
        """The green context that the stream belongs to."""
        self._call("context")
        return self._streams[stream][0]

    def is_idle(self, stream: Stream) -> bool:
        """By this GPU's time."""
        self._call("is_idle")
        return self._end(stream) <= self.now

    def drain(self, stream: Stream) -> None:
        """Time passes until the stream is done."""
        self._call("drain")
        self.now = max(self.now, self._end(stream))

    def destroy_stream(self, stream: Stream) -> None:
        """Give a stream back."""
        self._call("destroy_stream")
        del self._streams[stream]

    def make_mark(self) -> Mark:
        """A mark that is set nowhere."""
        self._call("make_mark")
        self._serial += 1
        self._marks[Mark(self._serial)] = 0
        return Mark(self._serial)

    def put(self, mark: Mark, stream: Stream) -> None:
        """Behind all that is in the stream now."""
        self._call("put")
        assert mark in self._marks, "a mark that is gone"
        self._marks[mark] = max(self.now, self._end(stream))

    def is_reached(self, mark: Mark) -> bool:
        """By this GPU's time."""
        self._call("is_reached")
        return self._marks[mark] <= self.now

    def wait(self, mark: Mark) -> None:
        """Time passes until the mark is reached."""
        self._call("wait")
        self.now = max(self.now, self._marks[mark])

    def elapsed(self, start: Mark, end: Mark) -> Duration:
        """The GPU's time between two marks."""
        self._call("elapsed")
        return self._marks[end] - self._marks[start]

    def destroy_mark(self, mark: Mark) -> None:
        """Give a mark back."""
        self._call("destroy_mark")
        del self._marks[mark]

    def memory(self) -> DeviceMemory:
        """What is used is in `used`."""
        self._call("memory")
        return DeviceMemory(self._memory - self.used, self._memory)

    def lock_pages(self, address: int, size: int) -> None:
        """Counted."""
        self._call("lock_pages")
        assert address not in self._locked, "pages are locked twice"
        self._locked.add(address)

    def unlock_pages(self, address: int) -> None:
        """Counted."""
        self._call("unlock_pages")
        self._locked.remove(address)

    def sm_ids(self, stream: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """Blocks fill the context's SMs, each in turn; on all of the GPU where nothing confines them."""
        self._call("sm_ids")
        context = self._streams[stream][0]
        everything = frozenset(range(self._topology.sms))
        ids = self._contexts[context] if context and self.faults.is_confining else everything
        if self.faults.crowded_rounds:
            self.faults.crowded_rounds -= 1
            ids = frozenset(sorted(ids)[::2])
        self._run(stream, spin * -(-blocks // (8 * len(ids))))
        self.now = max(self.now, self._end(stream))
        return frozenset(sorted(ids)[:blocks])

    def replayed_ids(self, stream: Stream, on: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """Graphs stay where they were captured, unless this GPU does wrong."""
        self._call("replayed_ids")
        return self.sm_ids(stream if self.faults.graphs_stay else on, blocks, spin)

    def spin(self, stream: Stream, spin: Duration) -> None:
        """Work of that length."""
        self._call("spin")
        self._run(stream, spin)

    def close(self) -> None:
        """Nothing may be left."""
        assert not self.live, f"{self.live} contexts, streams, marks and locked pages were not given back"

    def _run(self, stream: Stream, length: Duration) -> None:
        """Streams on one hardware queue wait for each other."""
        queue = self._streams[stream][1]
        self._queues[queue] = self._ends[stream] = max(self.now, self._queues.get(queue, 0)) + length

    def _end(self, stream: Stream) -> Instant:
        assert stream in self._streams, "a stream that is gone"
        return self._ends.get(stream, 0)

    def _set(self, ids: frozenset[int], split: int) -> SmSet:
        return SmSet(len(ids), self._topology.least, self._topology.alignment, _Ids(ids, split))

    def _call(self, name: str) -> None:
        """A call takes a microsecond, and may be one that was told to fail."""
        self.now += US
        self.calls[name] += 1
        if self.lost:
            raise self.lost
        after, error = self.faults.broken.get(name, (0, None))
        if error is None:
            return
        if after:
            self.faults.broken[name] = (after - 1, error)
            return
        del self.faults.broken[name]
        self.lost = error if isinstance(error, DeviceLost) else None
        raise error


def _ids(sms: SmSet) -> _Ids:
    assert isinstance(sms.handle, _Ids), "an SM set of another driver"
    return sms.handle


def _refuse(call: str, why: str) -> NoReturn:
    msg = f"{call}: {why}"
    raise DeviceError(msg)
