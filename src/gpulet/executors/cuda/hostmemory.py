"""Memory of the host that a GPU copies from and to by itself: pages of our own, locked until they are closed.

A runtime's own page-locked memory may put events into a share's stream when it is freed, which can be after the stream
is gone. Pages that are closed can still be read by whoever has a view of them.
"""

import mmap
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpulet.executors.cuda.ports import CudaDriver

Bytes: TypeAlias = NDArray[np.uint8]


class HostMemory:
    """What one graph has."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._locked: list[int] = []

    def room(self, size: int) -> Bytes:
        """So many zeros; raises `DeviceError`."""
        pages = np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8)
        self._driver.lock_pages(pages.ctypes.data, pages.size)
        self._locked.append(pages.ctypes.data)
        return pages[:size]

    def close(self) -> None:
        """On the builder's thread: it takes the context."""
        while self._locked:
            self._driver.unlock_pages(self._locked.pop())
