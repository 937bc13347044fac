"""What was up and stays down: gpulets whose workers do not come back, and devices of which every gpulet is down."""

from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from gpulet.core.fleet import Fleet
from gpulet.plan import GpuletId
from gpulet.units import Duration, Instant

Key = TypeVar("Key", bound=Hashable)


class Absences(Generic[Key]):
    """Those in `lost` were up once, and have been down `after` so long."""

    def __init__(self, after: Duration) -> None:
        self.lost: set[Key] = set()
        self._after = after
        self._seen_up: set[Key] = set()
        self._down_since: dict[Key, Instant] = {}

    def look(self, now: Instant, is_up: Mapping[Key, bool]) -> None:
        """Who is up now; of whom nothing is said stays as it was."""
        for key, up in is_up.items():
            if up:
                self._seen_up.add(key)
                self.forgive(key)
            elif key in self._seen_up and now - self._down_since.setdefault(key, now) >= self._after:
                self.lost.add(key)

    def expect(self, keys: Iterable[Key]) -> None:
        """These are to be up, whether they ever were or not."""
        self._seen_up.update(keys)

    def forgive(self, key: Key) -> None:
        """It is looked at anew."""
        self._down_since.pop(key, None)
        self.lost.discard(key)

    def keep(self, keys: Collection[Key]) -> None:
        """The others are no more."""
        for gone in self._seen_up - set(keys):
            self._seen_up.discard(gone)
            self.forgive(gone)


class Losses:
    """Of a fleet. A device without gpulets is as it was: nobody can tell. Gpulets of the first plan may take their time to load."""

    def __init__(self, device: Duration, gpulet: Duration) -> None:
        self.devices = Absences[int](device)
        self.gpulets = Absences[GpuletId](gpulet)
        self._known: frozenset[GpuletId] | None = None

    def look(self, now: Instant, fleet: Fleet) -> None:
        """See who is up now."""
        gpulets, devices = {}, dict[int, bool]()
        for state in fleet.gpulets.values():
            gpulets[state.id] = state.is_up
            device = state.planned.device
            devices[device] = devices.get(device, False) or state.is_up
        known = frozenset(gpulets)
        self.gpulets.keep(known)
        self.gpulets.expect(known - (known if self._known is None else self._known))
        self._known = known
        self.devices.look(now, devices)
        self.gpulets.look(now, gpulets)
