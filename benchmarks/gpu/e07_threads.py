"""E7 asks whether a thread for each gpulet launches in time, beside a thread that is busy with Python, or one launcher for all."""

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from typing import Any

from devices import Served, serving
from kit import Context, Result, judged, quantile, spread
from loops import Model, device_times

from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.units import SECOND

_MODEL = "resnet50"
_ROWS = 8
_LOAD = 0.6
_THREADS = (1, 2, 4)
_SWITCHES_S = (0.005, 0.0002)
_LATEST_MS = 1.0
_GRAIN_S = 0.00005


def run(context: Context) -> Result:
    """BAD where four threads beside a busy one launch their 99th percentile more than 1 ms late."""
    numbers: dict[str, Any] = {}
    with serving(context, [_MODEL]) as served:
        for count in _THREADS:
            intervals = served.gpu.parts(count)
            served.gpu.shares(intervals)
            loops = [_loop(served, interval) for interval in intervals]
            for is_busy, switch in product((False, True), _SWITCHES_S):
                if context.left > 0:
                    name = f"{count} threads, {'busy' if is_busy else 'idle'} beside, switch {1000 * switch:g} ms"
                    numbers[name] = _measured(context, served, loops, switch, is_busy=is_busy)
            if count == _THREADS[-1]:
                numbers["one launcher"] = _alone(context, served, loops)
    worst = numbers.get(f"{_THREADS[-1]} threads, busy beside, switch {1000 * _SWITCHES_S[-1]:g} ms")
    if worst is None:
        return judged(["no time was left for the case that counts"], "", numbers)
    late = worst["late_ms"]["p99"]
    said = f"4 threads beside a busy one: launched {late:.3f} ms late at p99, {worst['late_ms']['max']:.3f} at worst; "
    said += f"one launcher {numbers['one launcher']['late_ms']['p99']:.3f} ms"
    complaints = [f"launches are {late:.2f} ms late at p99"] if context.is_real and late > _LATEST_MS else []
    return judged(complaints, said, numbers)


def _loop(served: Served, interval: Interval) -> tuple[Model, float]:
    """A graph on that share, and seconds between two launches."""
    loop = served.loop(_MODEL, _ROWS, interval)
    took = quantile(device_times(served.gpu.driver, loop, 9), 0.5) / SECOND
    return loop, max(0.0005, took) / _LOAD


def _measured(
    context: Context, served: Served, loops: list[tuple[Model, float]], switch: float, *, is_busy: bool
) -> dict[str, Any]:
    seconds = 2.0 if context.is_real else 0.15
    driver = served.gpu.driver
    with _switching(switch), _python(is_busy=is_busy), ThreadPoolExecutor(len(loops), initializer=driver.enter) as pool:
        running = [pool.submit(_paced, driver, loop, period, seconds) for loop, period in loops]
        return _summed([each.result() for each in running])


def _paced(driver: CudaDriver, loop: Model, period: float, seconds: float) -> list[tuple[float, float]]:
    """One thread's launches at planned times: how late each was put in, and how late its end was known, in ms."""
    mark = driver.make_mark()
    found = []
    begin = time.perf_counter()
    for number in range(int(seconds / period) or 1):
        planned = begin + number * period
        _sleep_until(planned)
        loop.launch()
        launched = time.perf_counter()
        driver.put(mark, loop.stream)
        driver.wait(mark)
        found.append((1000 * (launched - planned), 1000 * (time.perf_counter() - planned)))
        begin = max(begin, time.perf_counter() - (number + 1) * period)  # a batch that ran over shifts the plan
    driver.destroy_mark(mark)
    return found


def _alone(context: Context, served: Served, loops: list[tuple[Model, float]]) -> dict[str, Any]:
    """One thread launches for all and asks for their ends, beside a busy one."""
    driver, seconds = served.gpu.driver, 2.0 if context.is_real else 0.15
    found: list[list[tuple[float, float]]] = [[] for _ in loops]
    marks = [driver.make_mark() for _ in loops]
    begin = time.perf_counter()
    due = [begin] * len(loops)
    since: list[tuple[float, float] | None] = [None] * len(loops)
    with _switching(_SWITCHES_S[-1]), _python(is_busy=True):
        while time.perf_counter() < begin + seconds:
            for place, (loop, period) in enumerate(loops):
                now, running = time.perf_counter(), since[place]
                if running and driver.is_reached(marks[place]):
                    planned, launched = running
                    found[place].append((1000 * (launched - planned), 1000 * (now - planned)))
                    since[place], due[place] = None, max(planned + period, now)
                elif not running and now >= due[place]:
                    loop.launch()
                    driver.put(marks[place], loop.stream)
                    since[place] = due[place], time.perf_counter()
    for (loop, _), mark in zip(loops, marks, strict=True):
        driver.drain(loop.stream)
        driver.destroy_mark(mark)
    return _summed([each for each in found if each])


def _summed(found: list[list[tuple[float, float]]]) -> dict[str, Any]:
    late, ends = ([pair[which] for each in found for pair in each] for which in (0, 1))
    return {"late_ms": spread(late), "end_ms": spread(ends)}


def _sleep_until(when: float) -> None:
    """Sleep, and spin for the last bit, which a sleep would overshoot."""
    while (left := when - time.perf_counter()) > 0:
        if left > 2 * _GRAIN_S:
            time.sleep(left - _GRAIN_S)


@contextmanager
def _switching(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    yield
    sys.setswitchinterval(before)


@contextmanager
def _python(*, is_busy: bool) -> Iterator[None]:
    """A thread that computes in Python all the time, as a front-end in the same process would."""
    stop = threading.Event()
    thread = threading.Thread(target=_compute, args=(stop,), daemon=True)
    if is_busy:
        thread.start()
    yield
    stop.set()
    if is_busy:
        thread.join()


def _compute(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(number * number for number in range(2000))
