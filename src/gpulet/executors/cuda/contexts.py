"""Intervals made real: a context, a stream on it, and the proof that work in that stream stays on its SMs.

A share is not handed out before the kernel that records where its blocks ran has been on exactly as many SMs as the
CUDA driver counts, so nothing can be served on an unproven one. Shares are kept for the process's life, unless nobody
holds them and somebody needs their memory. Only the builder's thread makes and drops shares; the stream then belongs to
the gpulet that stands on it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpulet.errors import Unproven
from gpulet.executors.cuda.layout import Interval, SmLayout
from gpulet.executors.cuda.ports import Context, CudaDriver, Stream
from gpulet.units import MS, US, Duration

_BLOCKS_PER_SM = 64
"""Twice what an SM holds of blocks at once on Hopper: the widest share gets two rounds, the narrowest 33."""
_HOLD: Duration = 20 * US
_LONG: Duration = 2 * MS
"""How long a stream is kept busy while another must get through: some fifty launches from Python."""
_TRIES = 3
"""Each four times as long as the one before: a thread or a kernel that is held up by what serves looks blocked too."""
_LOOKS = 8
_ROUNDS = 500
"""Some 50 ms or more, which outlasts a batch that fills SMs."""


@dataclass(frozen=True, slots=True)
class Share:
    """An interval with its stream; `context` is None for all of the GPU, `ids` are its SMs as seen by blocks on it."""

    interval: Interval
    context: Context | None
    stream: Stream
    ids: frozenset[int]

    @property
    def sms(self) -> int:
        """How many SMs it really has."""
        return len(self.ids)


class ContextPool:
    """The shares of one GPU."""

    def __init__(self, driver: CudaDriver, layout: SmLayout) -> None:
        self.layout = layout
        self._driver = driver
        self._shares: dict[Interval, Share] = {}
        self._holds: Counter[Interval] = Counter()
        self._apart: set[frozenset[Interval]] = set()

    def __contains__(self, interval: Interval) -> bool:
        return interval in self._shares

    def share(self, interval: Interval) -> Share:
        """The share of that interval, made now if it is not there; raises `Unproven`, `DeviceError`."""
        if interval not in self._shares:
            self._shares[interval] = self._make(interval)
        return self._shares[interval]

    def hold(self, interval: Interval) -> None:
        """A graph was captured on that share's stream, or a gpulet stands on it."""
        assert interval in self._shares, f"{interval} is not made"
        self._holds[interval] += 1

    def release(self, interval: Interval) -> None:
        """It is gone."""
        assert self._holds[interval] > 0, f"{interval} is not held"
        self._holds[interval] -= 1

    def drop(self, interval: Interval) -> None:
        """Give a share back that nobody holds."""
        assert not self._holds[interval], f"{interval} is held by {self._holds[interval]}"
        share = self._shares.pop(interval)
        self._forget(interval)
        self._driver.destroy_stream(share.stream)
        if share.context is not None:
            self._driver.destroy_context(share.context)

    def prove_apart(self, intervals: Sequence[Interval]) -> None:
        """Show that shares have no SM in common and do not wait for each other; a pair that was shown once is not again.

        Streams of disjoint shares may share one of the 8 to 32 hardware queues, where one blocks the other: a stream
        that no graph was captured on is then made anew, a few times; after that `Unproven`. What serves meanwhile is
        delayed by 2 ms for each pair, 42 ms at worst.
        """
        order = sorted(intervals, key=lambda interval: not self._holds[interval])
        for place, fresh in enumerate(order):
            others = [i for i in order[:place] if not i.overlaps(fresh)]
            for other in others:
                _prove_disjoint(self._shares[other], self._shares[fresh])
            self._prove_concurrent(others, fresh)

    def _prove_concurrent(self, standing: Sequence[Interval], fresh: Interval) -> None:
        blocker = fresh
        for number in range(_TRIES):
            length = _LONG * 4**number
            open_pairs = [i for i in standing if frozenset((i, fresh)) not in self._apart]
            waits = (i for i in open_pairs if _is_blocked(self._driver, self._shares[i], self._shares[fresh], length))
            blocker = next(waits, fresh)
            if blocker == fresh:
                self._apart.update(frozenset((i, fresh)) for i in standing)
                return
            if not self._holds[fresh]:
                self._restream(fresh)
        msg = f"share {fresh} waits for share {blocker}: their streams stand on one hardware queue"
        raise Unproven(msg)

    def widths(self) -> tuple[int, ...]:
        """How many SMs each share has."""
        return tuple(share.sms for share in self._shares.values())

    def idle(self) -> tuple[Interval, ...]:
        """The shares that nobody holds."""
        return tuple(i for i in self._shares if not self._holds[i])

    def close(self) -> None:
        """Give all shares back."""
        for interval in tuple(self._shares):
            self.drop(interval)

    def _make(self, interval: Interval) -> Share:
        """All of the GPU needs no context: a plain stream has every SM, merged or not."""
        driver = self._driver
        is_plain = self.layout.is_everything(interval)
        context = None if is_plain else driver.make_context(self.layout.sets(interval))
        stream: Stream | None = None
        try:
            stream = driver.make_stream(context)
            self._read_back(interval, context, stream)
            ids = self._where(stream, self.layout.sms(interval)) if self.layout.is_cut else self._most(stream)
            if self.layout.is_cut:
                self._compare(interval, len(ids), "blocks in its stream ran on")
                self._prove_replay(interval, stream, ids)
        except Exception:
            if stream is not None:
                driver.destroy_stream(stream)
            if context is not None:
                driver.destroy_context(context)
            raise
        return Share(interval, context, stream, ids)

    def _read_back(self, interval: Interval, context: Context | None, stream: Stream) -> None:
        """By way of the stream, since work goes there."""
        found = self._driver.context(stream)
        if (found is None) != (context is None):
            msg = f"share {interval}: its stream is {'in no' if found is None else 'in a'} green context"
            raise Unproven(msg)
        if found is not None:
            self._compare(interval, self._driver.sms(found), "the CUDA driver gave it")

    def _where(self, stream: Stream, expected: int) -> frozenset[int]:
        """Rounds of blocks until they have been everywhere: what serves below may keep some SMs full for a while."""
        ids: frozenset[int] = frozenset()
        for _ in range(_ROUNDS):
            ids |= self._driver.sm_ids(stream, _BLOCKS_PER_SM * self.layout.whole, _HOLD)
            if len(ids) >= expected:
                break
        return ids

    def _most(self, stream: Stream) -> frozenset[int]:
        """Where blocks ran in the widest of some rounds: how much a share of MPS is, nobody else tells."""
        rounds = [self._driver.sm_ids(stream, _BLOCKS_PER_SM * self.layout.whole, _HOLD) for _ in range(_LOOKS)]
        return max(rounds, key=len)

    def _prove_replay(self, interval: Interval, stream: Stream, ids: frozenset[int]) -> None:
        """A graph captured here runs here, though it is replayed on a stream of the whole GPU."""
        plain = self._driver.make_stream(None)
        try:
            blocks = _BLOCKS_PER_SM * self.layout.whole
            astray = sorted(self._driver.replayed_ids(stream, plain, blocks, _HOLD) - ids)
        finally:
            self._driver.destroy_stream(plain)
        if astray:
            msg = f"share {interval}: a graph captured on it ran on {len(astray)} SMs outside, SM {astray[0]} first"
            raise Unproven(msg)

    def _compare(self, interval: Interval, found: int, what: str) -> None:
        expected = self.layout.sms(interval)
        if found != expected:
            msg = f"share {interval} must have {expected} SMs, {what} {found}"
            raise Unproven(msg)

    def _forget(self, interval: Interval) -> None:
        self._apart = {pair for pair in self._apart if interval not in pair}

    def _restream(self, interval: Interval) -> None:
        """Another stream on the same SMs; the old one goes last, so that the new one does not get its hardware queue."""
        old = self._shares[interval]
        self._forget(interval)
        self._shares[interval] = replace(old, stream=self._driver.make_stream(old.context))
        self._driver.destroy_stream(old.stream)


def _prove_disjoint(one: Share, other: Share) -> None:
    common = sorted(one.ids & other.ids)
    if common:
        msg = f"shares {one.interval} and {other.interval} have {len(common)} SMs in common, SM {common[0]} first"
        raise Unproven(msg)


def _is_blocked(driver: CudaDriver, busy: Share, other: Share, length: Duration) -> bool:
    """Whether a short kernel on `other` only gets through when a long one on `busy` has ended."""
    mark = driver.make_mark()
    try:
        driver.spin(busy.stream, length)
        driver.spin(other.stream, _HOLD)
        driver.put(mark, other.stream)
        driver.wait(mark)
        return driver.is_idle(busy.stream)
    finally:
        driver.drain(busy.stream)
        driver.destroy_mark(mark)
