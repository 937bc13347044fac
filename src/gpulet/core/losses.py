"""Devices that are lost: every gpulet of one was up, and all have been down for long."""

from gpulet.core.fleet import Fleet
from gpulet.units import Duration, Instant


class Losses:
    """What was up when, as it is looked at. A device without gpulets is as it was: nobody can tell."""

    def __init__(self, after: Duration) -> None:
        self.lost: set[int] = set()
        self._after = after
        self._seen_up: set[int] = set()
        self._down_since: dict[int, Instant] = {}

    def look(self, now: Instant, fleet: Fleet) -> None:
        """Say in `lost` which devices are lost now; one of which a gpulet is up again is not."""
        is_up: dict[int, bool] = {}
        for state in fleet.gpulets.values():
            device = state.planned.device
            is_up[device] = is_up.get(device, False) or state.is_up
        for device, up in is_up.items():
            if up:
                self._seen_up.add(device)
                self.forgive(device)
            elif device in self._seen_up and now - self._down_since.setdefault(device, now) >= self._after:
                self.lost.add(device)

    def forgive(self, device: int) -> None:
        """It is looked at anew."""
        self._down_since.pop(device, None)
        self.lost.discard(device)
