"""A stream of the whole GPU, there as long as something needs it: weights arrive on it, references are computed on it."""

from gpulet.executors.cuda.ports import CudaDriver, Stream


class PlainStream:
    """Made for the first user and given back with the last."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._users = 0
        self._stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        """For who holds it."""
        assert self._stream is not None, "a plain stream that nobody holds"
        return self._stream

    def hold(self) -> Stream:
        """One more user."""
        if self._stream is None:
            self._stream = self._driver.make_stream(None)
        self._users += 1
        return self._stream

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if not self._users and self._stream is not None:
            self._driver.destroy_stream(self._stream)
            self._stream = None
