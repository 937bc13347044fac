"""Stages B to E: fit the estimate onto free parts, else readjust, then pack residues into one part."""

from gpulet.planners.glet.board import WHOLE, Board, Part, Tenant
from gpulet.planners.glet.wanted import Wanted
from gpulet.units import SECOND


def best_fit(board: Board, wanted: Part, without: list[Part]) -> list[Part]:
    """The free part for `wanted`, or none. An unsplit device beats every leftover seen before it; later ties win."""
    found: list[Part] = []
    least = 2 * WHOLE
    for part in board.parts():
        if part.share < wanted.share or part.tenants or part in without or not _suits(board, wanted, part):
            continue
        if part.share == WHOLE and len(board.shares) > 1:
            least, found = 0, [part]
        if least >= part.share - wanted.share:
            least, found = part.share - wanted.share, [part]
    return found


def _suits(board: Board, wanted: Part, part: Part) -> bool:
    """Memory, the model's objective beside what stands there, and (artifact's check) the neighbour's own cycle."""
    tenant = wanted.tenants[0]
    if not board.has_memory(tenant.model, part):
        return False
    if board.latency_in(tenant.model, tenant.batch, part) + wanted.duty > tenant.model.slo:
        return False
    neighbours = [p for p in board.devices[part.device] if p.place != part.place] if part.share != WHOLE else []
    return not any(
        2 * p.duty + board.host(t.model, t.batch, p.share) > t.model.slo for p in neighbours for t in p.tenants
    )


def fits(board: Board, wanted: list[Part]) -> bool:
    """Stage B: whether all parts would find a place, tried without placing any."""
    taken: list[Part] = []
    left: dict[int, int] = {}
    for part in wanted:
        while True:
            found = best_fit(board, part, taken) if part.tenants else []
            if not found:
                return False
            place = found[0]
            room = left.setdefault(id(place), place.share)
            if room >= part.share:
                break
            taken.append(place)
        left[id(place)] = room - part.share if board.can_cut and room == WHOLE else 0
        if not left[id(place)]:
            taken.append(place)
    return True


def allocate(board: Board, wanted: list[Part], task: Wanted) -> bool:
    """Stage C: place the estimate for good; false as soon as something does not work (what is placed stays)."""
    for part in wanted:
        found = best_fit(board, part, [])
        if not found:
            return False
        place = found[0]
        if part.share < place.share < WHOLE and not _enlarge(board, part, place):
            return False
        if place.share == WHOLE and part.share < WHOLE and board.can_cut:
            board.cut(place, part.share)
        place.duty, place.occupancy, place.tenants = part.duty, part.occupancy, list(part.tenants)
        board.load(task.model, place)
        if board.interference and not _adjust_device(board, place, task):
            return False
        task.rate = int(task.rate - place.tenants[0].throughput)
    if task.rate + task.lost > board.margins.slack:
        return False
    task.rate = 0
    return True


def _enlarge(board: Board, part: Part, place: Part) -> bool:
    """A leftover larger than wanted is taken whole: batch and cycle are chosen again for it."""
    tenant = part.tenants[0]
    is_full = part.occupancy == 1
    trial = Part(place.device, place.share, place.is_second)

    def latency(batch: int) -> float:
        return board.latency_in(tenant.model, batch, trial)

    if is_full:
        tenant.batch = board.saturated_batch(tenant.model, trial.share, latency)
    else:
        tenant.batch, tenant.rate = board.residual_batch(tenant.model, tenant.rate, trial.share, latency)
    if not tenant.batch:
        return False
    runs = latency(tenant.batch)
    part.share = place.share
    part.duty = runs if is_full else max(tenant.batch * SECOND / tenant.rate, runs)
    part.occupancy = runs / part.duty
    tenant.throughput = tenant.batch * SECOND / part.duty
    return True


def _adjust_device(board: Board, placed: Part, task: Wanted) -> bool:
    for part in board.devices[placed.device]:
        if part.occupancy == 1:
            if not _adjust_saturated(board, part, task):
                return False
        elif part.tenants:
            _adjust_residual(board, part)
    return True


def _adjust_saturated(board: Board, part: Part, task: Wanted) -> bool:
    """Beside a new neighbour: less throughput, then smaller batches. The artifact charges the loss to the task."""
    tenant = part.tenants[0]
    slo, before = tenant.model.slo, tenant.throughput
    batch, duty = tenant.batch, part.duty
    latency = board.latency_in(tenant.model, batch, part)
    while slo < 2 * latency:
        batch -= 1
        if not batch:
            return False
        latency = duty = board.latency_in(tenant.model, batch, part)
    tenant.batch, part.duty = batch, duty
    tenant.throughput = tenant.batch * SECOND / latency
    task.lost += max(0, int(before - tenant.throughput))
    return True


def _adjust_residual(board: Board, part: Part) -> bool:
    """Shrink batches and cycle together where the objective is missed by more than the residual slack."""
    runs = [board.latency_in(t.model, t.batch, part) for t in part.tenants]
    limit = min(t.model.slo for t in part.tenants) * board.margins.residual_slack
    if sum(runs) + part.duty <= limit:
        return True
    duties, batches = [], []
    for tenant, run in zip(part.tenants, runs, strict=True):
        batch, duty, others = tenant.batch, part.duty, sum(runs) - run
        while tenant.model.slo < others + run + duty:
            batch -= 1
            if not batch:
                return False
            run = board.latency_in(tenant.model, batch, part)  # noqa: PLW2901 (the same run, shorter)
            duty *= batch / tenant.batch
        duties.append(duty)
        batches.append(batch)
    part.duty = min(duties)
    for tenant, batch in zip(part.tenants, batches, strict=True):
        tenant.batch, tenant.throughput = batch, batch * SECOND / part.duty
    part.occupancy = sum(board.latency_in(t.model, t.batch, part) for t in part.tenants) / part.duty
    return True


def readjust(board: Board, given: list[Part], task: Wanted) -> None:
    """Stage D: fill free parts, largest first: saturated ones while the rate lasts, then residual ones."""
    if board.interference:
        task.rate, task.lost = task.rate + task.lost, 0
    while task.rate + task.lost > board.margins.slack and given:
        part = given[0]
        tenant = _saturating(board, part, given, task)
        if tenant.throughput > task.rate:
            _fill_residual(board, given, task)
            return
        if not _within_network(board, part, tenant):
            return
        if board.has_memory(task.model, part):
            duty = board.latency_in(task.model, tenant.batch, part)
            _place(board, part, tenant, task, duty=duty, occupancy=1.0)
        given.remove(part)


def _saturating(board: Board, part: Part, given: list[Part], task: Wanted) -> Tenant:
    """A tenant that never idles here. A whole device is cut at the share of the first estimated part."""
    model = task.model

    def latency(batch: int) -> float:
        return board.latency_in(model, batch, part)

    if part.share == WHOLE and len(board.shares) > 1 and board.can_cut:
        batch = _cut_for(board, part, given, task)
    else:
        batch = board.saturated_batch(model, part.share, latency) or 1
    return Tenant(model, task.rate, batch, batch * SECOND / latency(batch))


def _cut_for(board: Board, part: Part, given: list[Part], task: Wanted) -> int:
    """Cut a whole device as the estimate wants it; the estimate's batch."""
    first = task.estimate(max(task.rate, board.margins.slack + 1))[0]
    if first.share < WHOLE:
        given.append(board.cut(part, first.share))
        given[1:] = sorted(given[1:], key=lambda p: -p.share)
    return first.tenants[0].batch if first.tenants else 1


def _fill_residual(board: Board, given: list[Part], task: Wanted) -> None:
    while task.rate > board.margins.slack and given:
        part = given[0]
        if part.share == WHOLE and len(board.shares) > 1 and board.can_cut:
            _cut_for(board, part, given, task)

        def latency(batch: int, part: Part = part) -> float:
            return board.latency_in(task.model, batch, part)

        batch, task.rate = board.residual_batch(task.model, task.rate, part.share, latency)
        if not batch:
            return
        duty = batch * SECOND / task.rate
        tenant = Tenant(task.model, task.rate, batch, batch * SECOND / duty)
        if not _within_network(board, part, tenant):
            return
        if board.has_memory(task.model, part):
            _place(board, part, tenant, task, duty=duty, occupancy=latency(tenant.batch) / duty)
        given.remove(part)


def _within_network(board: Board, part: Part, tenant: Tenant) -> bool:
    """Shrink the batch to what the device's network carries; false when not one row is left."""
    share = board.network_share(part, tenant)
    batch = int(tenant.batch * share) if share < 1 else tenant.batch
    if not batch:
        return False
    tenant.throughput *= batch / tenant.batch
    tenant.batch = batch
    return True


def _place(board: Board, part: Part, tenant: Tenant, task: Wanted, *, duty: float, occupancy: float) -> None:
    """Put the tenant here unless a neighbour or the network cannot bear it; then the part is emptied again."""
    part.duty, part.occupancy = duty, occupancy
    part.tenants.append(tenant)
    if board.is_network_full(part.device) or not _neighbours_bear(board, part):
        part.clear()
        return
    task.rate = max(0, int(task.rate - tenant.throughput))
    board.load(task.model, part)


def _neighbours_bear(board: Board, placed: Part) -> bool:
    """The artifact writes what the neighbours lose to the wrong object, so it is forgotten here."""
    if not board.interference:
        return True
    for part in board.devices[placed.device]:
        if part.place != placed.place and part.tenants:
            adjusts = part.occupancy >= 1
            forgotten = Wanted(part.tenants[0].model, 0, {}, lambda _: [])
            if not (_adjust_saturated(board, part, forgotten) if adjusts else _adjust_residual(board, part)):
                return False
    return True


def merge_residues(board: Board, task: Wanted) -> bool:
    """Stage E: one part for all residual parts of this model and what is left of its rate, if that saturates none."""
    residues = [
        p for p in board.parts() if p.occupancy < 1 and len(p.tenants) == 1 and p.tenants[0].model is task.model
    ]
    rate = task.rate
    for part in residues:
        rate = int(rate + part.tenants[0].throughput)
    smallest = min(residues, key=lambda p: task.table[p.share].rate) if residues else None
    is_idle = not residues or (len(residues) == 1 and rate < board.margins.slack)
    if is_idle or smallest is None or task.table[smallest.share].rate < rate:
        return task.rate <= board.margins.slack
    share = smallest.share
    for part in residues:
        board.unload(task.model, part)
        part.clear()
    _pack(board, share, rate, task)
    if task.rate > board.margins.slack:
        return False
    _rejoin(board)
    return True


def _pack(board: Board, share: int, rate: int, task: Wanted) -> None:
    for part in board.parts():
        if part.tenants or part.share != share or not board.has_memory(task.model, part):
            continue

        def latency(batch: int, part: Part = part) -> float:
            return board.latency_in(task.model, batch, part)

        batch, raised = board.residual_batch(task.model, rate, share, latency)
        if not batch:
            continue
        part.duty = batch * SECOND / raised
        part.occupancy = board.latency_in(task.model, batch, part) / part.duty
        throughput = batch * SECOND / part.duty
        part.tenants.append(Tenant(task.model, int(throughput), batch, throughput))
        task.rate = max(0, int(raised - throughput))
        return


def _rejoin(board: Board) -> None:
    """Devices without any tenant are whole again."""
    for place, parts in enumerate(board.devices):
        if board.can_cut and len(parts) > 1 and not any(part.tenants for part in parts):
            board.devices[place] = [Part(place, WHOLE)]
