"""Places for runs that each bring a size of their own (`Carve`): the binary buddies of a layout's groups.

Sizes are powers of two of groups, each place aligned to its size: on 16 groups 31 places, no more than a GPU has hardware
queues, so that all of them can stand ready. Each model has graphs on a few places of every size, not on all. A run whose
places are all taken waits, and the one that will be free soonest is kept for it; so no two runs ever share an SM, and none
waits for ever, since the core starts no more than there are SMs. A size between two gets the next larger place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpulet.core.messages import BatchId, Carve, Start
from gpulet.executors.cuda.layout import Interval, SmLayout

MOST = 4
"""Places of one size that a model has graphs on: graphs cost memory, and a tenth of a second each when they are made."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place and how many SMs it has."""

    interval: Interval
    sms: int


Menus = Mapping[str, Sequence[Spot]]
"""The places of each model, ascending in size."""


def menus(layout: SmLayout, models: Sequence[str]) -> Menus:
    """Places for each of these models, dealt out so that two models seldom want the same."""
    sizes = [2**n for n in range(len(layout.groups).bit_length()) if 2**n <= len(layout.groups)]
    return {
        model: tuple(spot for groups in sizes for spot in _some(_buddies(layout, groups), turn))
        for turn, model in enumerate(models)
    }


def _buddies(layout: SmLayout, groups: int) -> tuple[Spot, ...]:
    sms = groups * layout.group
    starts = range(0, len(layout.groups) - groups + 1, groups)
    return tuple(Spot(layout.interval(start * layout.group, sms), sms) for start in starts)


def _some(spots: Sequence[Spot], turn: int) -> list[Spot]:
    """At most `MOST` of them, evenly spread, beginning with another for each model."""
    step = max(1, len(spots) // MOST)
    return [spots[(turn + step * n) % len(spots)] for n in range(min(MOST, len(spots)))]


class Board:
    """Who runs where, and who waits for which place."""

    def __init__(self, menus: Menus) -> None:
        self.menus = menus
        self._held: dict[BatchId, Interval] = {}
        self._waiting: dict[BatchId, tuple[Start, Interval]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs here or waits."""
        return not self._held and not self._waiting

    @property
    def running(self) -> frozenset[Interval]:
        """The places that are taken."""
        return frozenset(self._held.values())

    def start(self, command: Start) -> Interval | None:
        """Take a place of its model for this run; None: it waits for one, and `finish` will say."""
        spots = self._spots(command)
        kept = [target for _, target in self._waiting.values()]
        taken = [*self._held.values(), *kept]
        free = next((spot.interval for spot in spots if not _overlap(spot.interval, taken)), None)
        if free is not None:
            self._held[command.batch] = free
            return free
        open_spots = [spot for spot in spots if not _overlap(spot.interval, kept)]
        target = min(open_spots or spots, key=lambda spot: _busy(spot.interval, self._held.values()))
        self._waiting[command.batch] = command, target.interval
        return None

    def finish(self, batch: BatchId) -> list[tuple[Start, Interval]]:
        """A run has ended; those that waited and run now, in the order in which they came."""
        del self._held[batch]
        begun: list[tuple[Start, Interval]] = []
        for number, (command, target) in tuple(self._waiting.items()):
            if not _overlap(target, self._held.values()):
                del self._waiting[number]
                self._held[number] = target
                begun.append((command, target))
        return begun

    def _spots(self, command: Start) -> list[Spot]:
        """The places of the smallest size that is enough; of the largest where none is."""
        assert isinstance(command.on, Carve), "a gpulet's run has its gpulet's place"
        menu = self.menus[command.model]
        sizes = sorted({spot.sms for spot in menu})
        asked = command.on.size
        size = next((sms for sms in sizes if sms >= asked), sizes[-1])
        return [spot for spot in menu if spot.sms == size]


def _overlap(interval: Interval, others: Iterable[Interval]) -> bool:
    return any(interval.overlaps(other) for other in others)


def _busy(interval: Interval, held: Iterable[Interval]) -> int:
    """How many places of the interval are taken."""
    return sum(max(0, min(interval.stop, h.stop) - max(interval.start, h.start)) for h in held)
