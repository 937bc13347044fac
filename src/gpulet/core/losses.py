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

    def look(self, now: Instant, fleet: Fleet) -> tuple[list[int], list[int]]:
        """Devices that are lost now and were not at the last look, and those that are back."""
        is_up: dict[int, bool] = {}
        for state in fleet.gpulets.values():
            device = state.planned.device
            is_up[device] = is_up.get(device, False) or state.is_up
        back = [device for device, up in is_up.items() if up and device in self.lost]
        lost = [device for device, up in is_up.items() if not up and self._is_lost(now, device)]
        for device in (device for device, up in is_up.items() if up):
            self._seen_up.add(device)
            self._down_since.pop(device, None)
        self.lost = (self.lost | {*lost}) - {*back}
        return lost, back

    def _is_lost(self, now: Instant, device: int) -> bool:
        if device not in self._seen_up or device in self.lost:
            return False
        return now - self._down_since.setdefault(device, now) >= self._after
