"""Stage F: temporal sharing, the artifact's last resort. A model takes turns on parts that still idle."""

from gpulet.planners.glet.board import Board, Part, Tenant
from gpulet.planners.glet.wanted import Wanted
from gpulet.units import MS, SECOND


def share_in_time(board: Board, task: Wanted, only: list[Part]) -> bool:
    """Place what is left of the rate beside the tenants of other parts, the busiest first; `only` these if any are given."""
    candidates = [part for part in board.parts() if board.has_memory(task.model, part) and _is_open(board, part, only)]
    candidates.sort(key=lambda part: -part.occupancy)
    while task.rate + task.lost > board.margins.slack:
        if not any(_join(board, part, task) for part in candidates):
            return False
    return True


def _is_open(board: Board, part: Part, only: list[Part]) -> bool:
    if only:
        return any(part.place == other.place for other in only)
    return part.occupancy < 1 and len(part.tenants) < board.margins.most_models


def _join(board: Board, part: Part, task: Wanted) -> bool:
    """Take a turn on this part, if a shorter cycle can be found in which everybody stays in time."""
    if part.occupancy >= 1 or any(t.model is task.model for t in part.tenants):
        return False
    batch, duty = _turn(board, part, task)
    if not batch or duty > part.duty:
        return False
    runs = board.latency_in(task.model, batch, part)
    batches = [min(board.limit(t.model, part.share), max(1, int(duty * t.rate / SECOND))) for t in part.tenants]
    runs += sum(board.latency_in(t.model, b, part) for t, b in zip(part.tenants, batches, strict=True))
    slo = min(task.model.slo, *(t.model.slo for t in part.tenants)) if part.tenants else task.model.slo
    if runs > duty or runs + duty > slo:
        return False
    for tenant, rows in zip(part.tenants, batches, strict=True):
        tenant.batch, tenant.throughput = rows, rows * SECOND / duty
    throughput = batch * SECOND / duty
    part.tenants.append(Tenant(task.model, task.rate, batch, throughput))
    task.rate = max(0, int(task.rate - throughput))
    board.load(task.model, part)
    part.duty, part.occupancy = duty, runs / duty
    return True


def _turn(board: Board, part: Part, task: Wanted) -> tuple[int, int]:
    """The largest batch of the newcomer and the cycle it needs (whole milliseconds, as in the artifact)."""
    for batch in range(min(board.limit(task.model, part.share), int(part.duty * task.rate / SECOND)), 0, -1):
        duty = batch * SECOND // task.rate // MS * MS
        latency = board.latency_in(task.model, batch, part)
        if duty and duty + latency < task.model.slo and latency / duty < 1 - part.occupancy:
            return batch, duty
    return 0, 0
