"""Which models give way: decisions over what is loaded, without doing anything."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gpulet.units import Duration, Instant


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded: the bytes of all its copies, and when it was last seen to be asked for.

    `is_pinned`: it stays. `is_busy`: requests for it wait or run.
    """

    name: str
    bytes: int
    used: Instant
    is_pinned: bool = False
    is_busy: bool = False

    @property
    def may_go(self) -> bool:
        """Whether nobody would notice at once."""
        return not self.is_pinned and not self.is_busy


@dataclass(frozen=True, slots=True)
class Room:
    """Whom to unload, in that order, and the bytes that are lacking even then."""

    unload: tuple[str, ...] = ()
    lacks: int = 0


def room_for(needs: int, loaded: Collection[Loaded], limit: int) -> Room:
    """The least recently used go first, no more of them than `needs` more bytes take; no one where it is in vain."""
    free = limit - sum(model.bytes for model in loaded)
    going: list[str] = []
    for model in sorted((m for m in loaded if m.may_go), key=lambda m: (m.used, m.name)):
        if free >= needs:
            break
        going.append(model.name)
        free += model.bytes
    return Room(tuple(going)) if free >= needs else Room(lacks=needs - free)


def idle(loaded: Iterable[Loaded], now: Instant, after: Duration) -> tuple[str, ...]:
    """Those that were not asked for so long."""
    return tuple(model.name for model in loaded if model.may_go and now - model.used >= after)


def affordable(expected: Mapping[str, int], pinned: Collection[str], limit: int) -> tuple[str, ...]:
    """The models to begin with: all that are pinned, then each of the others, in their order, that still fits."""
    chosen = {name for name in expected if name in pinned}
    free = limit - sum(expected[name] for name in chosen)
    for name, size in expected.items():
        if name not in chosen and size <= free:
            chosen.add(name)
            free -= size
    return tuple(name for name in expected if name in chosen)
