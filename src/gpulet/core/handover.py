"""From one plan to the next at batch boundaries: who leaves ends what it runs, who is new begins once its place is free.

No gpulet that stays is touched, and at no instant do more gpulets stand on a device than fit there.
"""

from collections.abc import Iterator

from gpulet.core.fleet import Fleet, GpuletState
from gpulet.device import overcut
from gpulet.plan import GpuletId, Plan, placements


class Handover:
    """Which gpulets leave, and which are built but not up. Between plans it has nothing to do."""

    def __init__(self, fleet: Fleet) -> None:
        self.leaving: dict[GpuletId, GpuletState] = {}
        self._fleet = fleet
        self._recut: set[int] = set()
        self._built: set[GpuletId] = set()

    def begin(self, plan: Plan) -> list[GpuletState]:
        """The fleet is this plan's from now on; those that leave."""
        devices, known = self._fleet.devices, self._fleet.gpulets
        self._recut = {d.index for d in plan.devices if d.mechanism is not devices[d.index].device.mechanism}
        for device in plan.devices:
            devices[device.index].device = device
        numbers = {gpulet.id for gpulet in plan.gpulets}
        gone = [state for number, state in known.items() if number not in numbers]
        for state in gone:
            state.is_leaving, state.is_up = True, False
            self.leaving[state.id] = state
        fresh = {gpulet.id: known.get(gpulet.id) or GpuletState(gpulet) for gpulet in plan.gpulets}
        known.clear()
        known.update(fresh)
        for gpulet in plan.gpulets:
            known[gpulet.id].planned = gpulet
        return gone

    def built(self, number: GpuletId) -> None:
        """A gpulet could run batches, of a plan in force or to come."""
        self._built.add(number)

    def fell(self, number: GpuletId) -> None:
        """It could not, or no longer."""
        self._built.discard(number)

    def forget(self) -> None:
        """No plan comes of what was built for it."""
        self._built &= self._fleet.gpulets.keys()

    def find(self, number: GpuletId) -> GpuletState | None:
        """The gpulet of that number, in force or leaving; none where it is only being built."""
        return self._fleet.gpulets.get(number) or self.leaving.get(number)

    def left(self, state: GpuletState) -> None:
        """It runs nothing any more."""
        del self.leaving[state.id]
        self._built.discard(state.id)

    def rise(self) -> Iterator[GpuletState]:
        """Those that are built, and whose place is free now: they are up."""
        for number in sorted(self._built):
            state = self._fleet.gpulets.get(number)
            if state and not state.is_up and self._is_free(state):
                state.is_up = True
                yield state

    def _is_free(self, state: GpuletState) -> bool:
        index = state.planned.device
        leaving = [other.planned for other in self.leaving.values() if other.planned.device == index]
        if not leaving or index in self._recut:  # by another mechanism: nothing stands beside what was
            return not leaving
        up = [o.planned for o in self._fleet.gpulets.values() if o.planned.device == index and (o.is_up or o is state)]
        return not overcut(self._fleet.devices[index].device, placements([*leaving, *up]))
