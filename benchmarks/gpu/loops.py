"""Work that is launched again and again on one share, and how long the GPU takes for it.

The GPU's time of a model's graph excludes what the host does before it launches: a kernel that only waits keeps the
stream busy meanwhile, and the first mark stands behind that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import torch

from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.ports import CudaDriver, Mark, Stream
from gpulet.units import MS, SECOND, US, Duration

if TYPE_CHECKING:
    from gpulet.executors.cuda.runtime import Graph, Tensors

    Given = tuple[int, Tensors]

_DEPTH = 4
_LONGEST_SPIN: Duration = 200 * MS


class Loop(Protocol):
    """What can be launched on a stream; `depth` of it at once."""

    stream: Stream
    depth: int

    def launch(self) -> None:
        """Put it into the stream once."""
        ...


class Torch:
    """Torch's work, captured on a share's stream; on the CPU it is done at once, and the imaginary GPU is told how long."""

    depth = _DEPTH

    def __init__(self, driver: CudaDriver, share: Share, work: Callable[[], object], *, is_real: bool) -> None:
        self.stream = share.stream
        self._driver = driver
        self._work = work
        self._graph = self._captured() if is_real else None

    def launch(self) -> None:
        if self._graph is not None:
            with torch.cuda.stream(self._outside()):
                self._graph.replay()
            return
        began = time.perf_counter_ns()
        with torch.inference_mode():
            self._work()
        self._driver.spin(self.stream, time.perf_counter_ns() - began)

    def _outside(self) -> torch.cuda.ExternalStream:
        return torch.cuda.ExternalStream(int(self.stream))

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Warm first, on the same stream; what it reads was made on another, so all of that must be there."""
        torch.cuda.synchronize()
        stream = self._outside()
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(2):
                self._work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self.kept = self._work()
        return graph


class Model:
    """A graph of the model runtime with the same inputs every time, so that the next may be put in while one runs."""

    depth = 2

    def __init__(self, driver: CudaDriver, graph: "Graph", stream: Stream, given: "Given", *, is_real: bool) -> None:
        self.stream = stream
        self.graph = graph
        self._rows, self._inputs = given
        self._imaginary = None if is_real else driver

    def launch(self) -> None:
        began = time.perf_counter_ns()
        self.graph.replay(self._rows, self._inputs)
        if self._imaginary:  # it ran on the CPU, to its end
            self._imaginary.spin(self.stream, time.perf_counter_ns() - began)


def device_times(driver: CudaDriver, loop: Loop, count: int) -> list[Duration]:
    """Of `count` launches, one at a time, without what the host does before each."""
    first, last = driver.make_mark(), driver.make_mark()
    times: list[Duration] = []
    spin = 4 * _host_time(driver, loop) + 100 * US
    while len(times) < count:
        driver.spin(loop.stream, spin)
        driver.put(first, loop.stream)
        loop.launch()
        driver.put(last, loop.stream)
        was_late = driver.is_reached(first) and spin < _LONGEST_SPIN
        driver.wait(last)
        if was_late:
            spin *= 2
        else:
            times.append(driver.elapsed(first, last))
    for mark in (first, last):
        driver.destroy_mark(mark)
    return times


def wall_times(driver: CudaDriver, loop: Loop, count: int) -> list[Duration]:
    """From before the launch until a waiting thread knows the end: what a server sees."""
    mark = driver.make_mark()
    times: list[Duration] = []
    for _ in range(count):
        began = time.perf_counter_ns()
        loop.launch()
        driver.put(mark, loop.stream)
        driver.wait(mark)
        times.append(time.perf_counter_ns() - began)
    driver.destroy_mark(mark)
    return times


def _host_time(driver: CudaDriver, loop: Loop) -> Duration:
    """Of one launch; the second, since the first may load things."""
    took = 0
    for _ in range(2):
        began = time.perf_counter_ns()
        loop.launch()
        took = time.perf_counter_ns() - began
        driver.drain(loop.stream)
    return took


def beside(driver: CudaDriver, loops: Sequence[Loop], seconds: float) -> list[list[Duration]]:
    """All at once for so long, a thread each: the time from end to end of each launch, without the first tenth."""
    gate = threading.Barrier(len(loops))
    with ThreadPoolExecutor(len(loops), initializer=driver.enter) as pool:
        running = [pool.submit(_kept_busy, driver, loop, seconds, gate) for loop in loops]
        return [each.result(timeout=seconds + 60) for each in running]


def _kept_busy(driver: CudaDriver, loop: Loop, seconds: float, gate: threading.Barrier) -> list[Duration]:
    """Marks between launches that follow without a gap, so that the time between two is one launch's."""
    marks = [driver.make_mark() for _ in range(loop.depth + 2)]
    under_way: deque[Mark] = deque()
    times: list[Duration] = []
    gate.wait(30)
    end = time.perf_counter() + seconds
    driver.put(marks[0], loop.stream)
    under_way.append(marks[0])
    place = 0
    while time.perf_counter() < end or len(times) < 3:  # noqa: PLR2004 (a median needs some)
        place = (place + 1) % len(marks)
        loop.launch()
        driver.put(marks[place], loop.stream)
        under_way.append(marks[place])
        if len(under_way) > loop.depth:
            before = under_way.popleft()
            driver.wait(under_way[0])
            times.append(driver.elapsed(before, under_way[0]))
    driver.drain(loop.stream)
    for mark in marks:
        driver.destroy_mark(mark)
    return times[len(times) // 10 :]


def rate(times: Sequence[Duration], each: float) -> float:
    """`each` (bytes, operations) per second, by the median."""
    middle = sorted(times)[len(times) // 2]
    return each * SECOND / max(1, middle)
