"""What a foreign table says of one (model, shape, size, processes, batch), and what is odd about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gpulet.device import Size
from gpulet.errors import ProfileError
from gpulet.profile import Point
from gpulet.units import PLAIN, Duration, to_ms


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; `where` is the file and line it comes from, the rest as in `Point`."""

    model: str
    size: Size
    rows: int
    latency: Duration
    where: str
    shape: str = PLAIN
    host: Duration = 0
    l2: float = 0.0
    dram: float = 0.0
    processes: int = 1
    busy: float = 0.0

    def at(self, what: str) -> str:
        """Where in the grid a reader finds `what`, say of which shape class and how many processes."""
        several = f"{self.processes} processes, " if self.processes > 1 else ""
        return (f"shape {self.shape}, " if self.shape else "") + several + what

    def point(self) -> Point:
        """As a point whose tails are not known."""
        mean = self.latency + self.host
        return Point(
            self.model,
            self.size.sms,
            self.rows,
            *(mean, mean, mean),
            shape=self.shape,
            host=self.host,
            l2=self.l2,
            dram=self.dram,
            processes=self.processes,
            busy=self.busy,
        )


class OddKind(StrEnum):
    """What can be odd about a table that is usable all the same."""

    SHARE_NOT_OFFERED = "share_not_offered"
    SIZES_DIFFER = "sizes_differ"
    MISSING_CELLS = "missing_cells"
    FASTER_WITH_BATCH = "faster_with_batch"
    SLOWER_WITH_SIZE = "slower_with_size"
    FASTER_WITH_PROCESSES = "faster_with_processes"
    EQUAL_DUPLICATE = "equal_duplicate"
    COPIED_ROW = "copied_row"
    WRONG_THROUGHPUT = "wrong_throughput"
    UNKNOWN_UTILIZATION = "unknown_utilization"
    HELD_UTILIZATION = "held_utilization"


@dataclass(frozen=True, slots=True)
class Oddity:
    """One thing to know before a table is trusted."""

    kind: OddKind
    model: str
    where: str
    value: str


def merged(cells: Iterable[Cell]) -> tuple[tuple[Cell, ...], tuple[Oddity, ...]]:
    """Each cell once; raises `ProfileError` where two say different things of one."""
    first: dict[tuple[str, str, int, int, int], Cell] = {}
    twins: list[Oddity] = []
    for cell in cells:
        earlier = first.setdefault((cell.model, cell.shape, cell.size.sms, cell.processes, cell.rows), cell)
        if earlier.latency != cell.latency:
            raise ProfileError(_clash(earlier, cell))
        if earlier is not cell:
            twins.append(Oddity(OddKind.EQUAL_DUPLICATE, cell.model, cell.where, f"same as {earlier.where}"))
    return tuple(first.values()), tuple(twins)


def _clash(earlier: Cell, cell: Cell) -> str:
    which = f"model {cell.model}, {cell.at(f'{cell.size.sms} SMs')}, batch {cell.rows}"
    return f"{cell.where}: {which}: {to_ms(cell.latency):g} ms, but {to_ms(earlier.latency):g} ms in {earlier.where}"
