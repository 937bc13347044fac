"""What the leaf stages of one application request gave, kept until all of them are done."""

from collections.abc import Sequence
from typing import Protocol

from gpulet.application import Application
from gpulet.core.messages import Reason
from gpulet.executors.base import Buffer, Outputs, Payload, Result, Tensor


class Client(Payload, Protocol):
    """Who waits for an answer; exactly one of the two is called, once. `name` is the client's own id of the request."""

    rows: int
    name: str

    @property
    def protocol(self) -> str:
        """What it speaks: http, grpc."""
        ...

    @property
    def traceparent(self) -> str:
        """The W3C header by which it asks for a trace of its own to be continued; empty for none."""
        ...

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Take `rows` rows of the outputs from `first_row`; copy what is kept."""
        ...

    def refuse(self, reason: Reason) -> None:
        """No result, and why."""
        ...


class Gathering:
    """Stands for the client of an application request, and hands out those who wait for its stage requests."""

    def __init__(self, client: Client, application: Application) -> None:
        self.client = client
        self.rows = client.rows
        self.name = client.name
        self.inputs: tuple[Buffer, ...] = ()
        self.dims: tuple[tuple[int, ...], ...] = ()
        self._leaves = {stage.name for stage in application.leaves}
        self._given: dict[str, list[Result]] = {}

    @property
    def protocol(self) -> str:
        """As its client."""
        return self.client.protocol

    @property
    def traceparent(self) -> str:
        """As its client."""
        return self.client.traceparent

    def part(self, stage: str) -> "Part":
        """Who waits for one request of this stage."""
        return Part(self, stage)

    def give(self, stage: str, outputs: Outputs, first_row: int) -> None:
        """One stage request's rows; only a leaf's are kept. With several leaves, `STAGE.` stands before the names."""
        if stage in self._leaves:
            for result in outputs:
                name = f"{stage}.{result.tensor.name}" if len(self._leaves) > 1 else result.tensor.name
                self._given.setdefault(name, []).append(_rows(result, name, first_row, self.rows))

    def conclude(self) -> None:
        """Answer with the rows of each leaf's requests one after the other."""
        self.client.answer([_joined(results) for results in self._given.values()], 0)

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Never: an application request is concluded."""
        raise AssertionError

    def refuse(self, reason: Reason) -> None:
        """No result, and why."""
        self.client.refuse(reason)


class Part:
    """Who waits for one stage request: nobody is told when it is refused, since its application request is then, too."""

    __slots__ = ("_gathering", "_stage", "dims", "inputs", "name", "rows")
    protocol = ""
    traceparent = ""

    def __init__(self, gathering: Gathering, stage: str) -> None:
        self._gathering = gathering
        self._stage = stage
        self.rows = gathering.rows
        self.name = gathering.name
        self.inputs: tuple[Buffer, ...] = ()
        self.dims: tuple[tuple[int, ...], ...] = ()

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Its rows have come."""
        self._gathering.give(self._stage, outputs, first_row)

    def refuse(self, reason: Reason) -> None:
        """Nothing: see above."""


def _rows(result: Result, name: str, first_row: int, rows: int) -> Result:
    """A copy of these rows."""
    row_bytes = len(result.data) // result.shape[0]
    data = bytes(result.data[first_row * row_bytes : (first_row + rows) * row_bytes])
    tensor = Tensor(name, result.tensor.datatype, result.tensor.shape)
    return Result(tensor, (rows, *result.shape[1:]), memoryview(data))


def _joined(results: Sequence[Result]) -> Result:
    rows = sum(result.shape[0] for result in results)
    data = b"".join(result.data for result in results)
    return Result(results[0].tensor, (rows, *results[0].shape[1:]), memoryview(data))
