"""What a set of graphs takes of a GPU's memory, by name, before any of it is asked for.

Weights once for each model; buffers for each graph; for each share one pool, as large as its largest graph needs since
they run one after the other; a session for each model and share where a runtime needs one; and the scratch of cuBLAS
and cuBLASLt, which is kept for each (thread, stream).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpulet.errors import PlanError
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.executors.cuda.runtime import GraphKey, Need
from gpulet.units import MIB

HEADROOM = 0.05
"""Of the GPU's memory: fragments, and what nobody has an account of."""
SHARE_BYTES = 2 * 32 * MIB + 4 * MIB
"""Scratch of cuBLAS and cuBLASLt on Hopper, and a context: to be measured (E3)."""
_SHARE = "share "


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of a bill."""

    what: str
    size: int


class MemoryLedger:
    """Refuses what does not fit `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def bill(self, needs: Mapping[GraphKey, Need]) -> tuple[Charge, ...]:
        """What these graphs take, largest first."""
        weights = {f"weights of {key.model}": need.weights for key, need in needs.items()}
        pools: dict[str, int] = {}
        for key, need in needs.items():
            name = f"{_SHARE}{key.interval}"
            pools[name] = max(pools.get(name, 0), need.pool + SHARE_BYTES)
            if need.session:
                session = f"session of {key.model} on {key.interval}"
                pools[session] = max(pools.get(session, 0), need.session)
        buffers = {f"buffers of {key}": need.staging for key, need in needs.items()}
        charges = (Charge(what, size) for bills in (weights, pools, buffers) for what, size in bills.items())
        return tuple(sorted(charges, key=lambda charge: -charge.size))

    def alone(self, needs: Mapping[GraphKey, Need]) -> int:
        """What these take for themselves, without the pools of their shares, which others use as well."""
        return total(charge for charge in self.bill(needs) if not charge.what.startswith(_SHARE))

    def can_fit(self, needs: Mapping[GraphKey, Need]) -> bool:
        """Whether these graphs fit together."""
        return total(self.bill(needs)) <= self.capacity

    def fit(self, needs: Mapping[GraphKey, Need]) -> None:
        """Raise `PlanError`, with names and numbers, unless they do."""
        bill = self.bill(needs)
        if total(bill) > self.capacity:
            lines = ", ".join(f"{charge.what} {_mib(charge.size)}" for charge in bill[:3])
            more = f" and {len(bill) - 3} more" if len(bill) > 3 else ""  # noqa: PLR2004 (those that are named)
            msg = f"GPU memory: {_mib(total(bill))} MiB asked of {_mib(self.capacity)}: {lines}{more}"
            raise PlanError(msg)


def open_ledger(driver: CudaDriver) -> MemoryLedger:
    """Of what is free now, before anything is loaded, less the headroom."""
    memory = driver.memory()
    return MemoryLedger(memory.free - round(HEADROOM * memory.total))


def total(bill: Iterable[Charge]) -> int:
    """Bytes of all lines."""
    return sum(charge.size for charge in bill)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"
