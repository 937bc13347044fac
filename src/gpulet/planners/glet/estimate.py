"""Stage A: which parts a model would take on an empty fleet.

Saturated parts at the efficient share, then one residual part at the smallest share that keeps its batch in time. The
greedy baseline takes the smallest share that carries the rate, else the largest, again and again (guided self-tuning).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from gpulet.model import Model
from gpulet.planners.glet.board import WHOLE, Board, Part, Tenant
from gpulet.units import SECOND


@dataclass(frozen=True, slots=True)
class Saturation:
    """What one share carries when it never idles: its batch and its rows/s."""

    batch: int
    rate: float


def saturation(board: Board, model: Model) -> Mapping[int, Saturation]:
    """By share, largest batch with 2 L(b) <= SLO (single rows where there is none), without interference."""
    table = {}
    for share in board.shares:
        batch = board.saturated_batch(model, share, lambda b, share=share: board.latency(model, b, share)) or 1  # type: ignore[misc] # share is bound on purpose
        table[share] = Saturation(batch, batch * SECOND / board.latency(model, batch, share))
    return table


def efficient_share(table: Mapping[int, Saturation], gate: float) -> int:
    """The upper end of the steepest segment of rate over share that gains at least `gate`; the last one is not looked at.

    So the largest share is never efficient (specification of gpu-lets, section 2.3, `getMaxReturnPart`).
    """
    shares = sorted(table)
    best, steepest = shares[0], 0.0
    for low, high in list(pairwise(shares))[:-1]:
        gain = table[high].rate - table[low].rate
        if table[high].rate / table[low].rate >= gate and gain / (high - low) > steepest:
            best, steepest = high, gain / (high - low)
    return best


def estimate(board: Board, model: Model, rate: int, table: Mapping[int, Saturation]) -> list[Part]:
    """The parts for `rate`, in the order in which they were found; none for a rate within the slack."""
    parts: list[Part] = []
    share = efficient_share(table, board.margins.gain_gate)
    full = table[share]
    while rate > board.margins.slack and full.rate < rate:
        duty = board.latency(model, full.batch, share)
        parts.append(Part(-1, share, duty=duty, occupancy=1.0, tenants=[Tenant(model, rate, full.batch, full.rate)]))
        rate = int(rate - full.rate)
    if rate > board.margins.slack:
        parts += _residual(board, model, rate, share)
    return parts


def _residual(board: Board, model: Model, rate: int, share: int) -> list[Part]:
    """The batch is chosen at the efficient share, then the share shrinks while that batch stays in time."""
    batch, raised = board.residual_batch(model, rate, share, lambda b: board.latency(model, b, share))
    if not batch:
        return [Part(-1, WHOLE + 1)]  # fits nowhere
    build = batch * SECOND / raised
    smallest = share
    for candidate in reversed([s for s in board.shares if s <= share]):
        latency = board.latency(model, batch, candidate)
        if build < latency or model.slo < latency + build:
            break
        smallest = candidate
    latency = board.latency(model, batch, smallest)
    duty = max(build, latency)
    tenant = Tenant(model, rate, batch, batch * SECOND / duty)
    return [Part(-1, smallest, duty=duty, occupancy=latency / duty, tenants=[tenant])]


def estimate_greedy(board: Board, model: Model, rate: int, table: Mapping[int, Saturation]) -> list[Part]:
    """The greedy baseline's parts: no efficient share, no residual rule."""
    parts: list[Part] = []
    while rate > 0:
        share = next((s for s in sorted(table) if int(table[s].rate) > rate), max(table))
        batch, carries = table[share].batch, int(table[share].rate)
        duty = batch * SECOND / rate
        tenant = Tenant(model, rate, batch, carries)
        occupancy = board.latency(model, batch, share) / duty
        parts.append(Part(-1, share, duty=duty, occupancy=occupancy, tenants=[tenant]))
        rate -= max(carries, 1)
    return parts
