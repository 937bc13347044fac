"""Elastic partitioning (gpu-lets, Choi et al., USENIX ATC 2022, Algorithm 1), without and with interference.

Models in ascending order of rate x SLO; each is placed as saturated gpulets at its knee (MaxEfficientPartition) and a
last gpulet of the smallest sufficient size (MinRequiredPartition), best fit with split, sharing a gpulet already there
in time when the squishy rule allows it. docs/elastic-by-hand.md follows it step by step.

Departures: a free piece smaller than wanted is used when none is large enough (the paper gives up); the residual is
offered to temporal sharing before a gpulet is cut for it, which is what undoing that cut amounts to; how many gpulets a
device may hold is a parameter (two in the paper); `intf` is what the worst neighbour costs that the rest of the device
may ever hold, because Algorithm 1 places neighbours later without looking back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, Size
from gpulet.duty import Cycle, Share, residual, saturated, saturated_rate, squishy
from gpulet.errors import PlanError
from gpulet.interference import Interference, Side, footprint
from gpulet.knee import knee
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Curve
from gpulet.units import SECOND, to_ms

PAPER_GPULETS_PER_DEVICE = 2


class Order(StrEnum):
    """Which model is placed first: ascending rate x SLO (ATC 2022), or descending rate (arXiv 2109.01611)."""

    RATE_X_SLO = "rate x SLO"
    RATE = "rate"


_NOTHING = 1e-6
"""Rates below this are rounding."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A free part of a device, in its mechanism's unit: percent under MPS, SMs or cores elsewhere."""

    device: Device
    offset: float
    length: float
    cuts_left: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """A gpulet in the making: who shares it at which rate."""

    piece: _Piece
    size: Size
    tenants: tuple[tuple[Model, float], ...]
    cycle: Cycle


def elastic(
    problem: Problem,
    *,
    most_per_device: int = PAPER_GPULETS_PER_DEVICE,
    shares_in_time: bool = True,
    order: Order = Order.RATE_X_SLO,
    with_interference: bool = False,
) -> Plan | Infeasible:
    """Plan as in Algorithm 1. All or nothing, like the paper: one model that does not fit makes it `Infeasible`.

    Without `shares_in_time` every gpulet has one model: more of the fleet, and more headroom. `with_interference` needs
    `problem.interference`: raises `PlanError` without it.
    """
    curves = _Curves(problem, problem.needs_interference() if with_interference else None)
    board = _Board(problem, curves, most_per_device, shares_in_time=shares_in_time)
    for model in sorted(problem.models.values(), key=lambda m: (_rank(problem, m, order), m.name)):
        board.serve(model)
    return board.outcome()


def _rank(problem: Problem, model: Model, order: Order) -> float:
    rate = problem.demand.get(model.name, 0.0)
    return rate * model.slo if order is Order.RATE_X_SLO else -rate


class _Curves:
    """Latency by rows at each size: the profile's, stretched by the worst neighbour where interference is planned for."""

    def __init__(self, problem: Problem, interference: Interference | None) -> None:
        self._problem = problem
        self._interference = interference
        self._known: dict[tuple[str, int], Curve] = {}

    def __call__(self, model: str, size: Size) -> Curve:
        key = model, size.sms
        if key not in self._known:
            curve = self._problem.profile.curve(model, size.sms)
            self._known[key] = self._stretched(model, size, curve) if self._interference else curve
        return self._known[key]

    def _stretched(self, model: str, size: Size, curve: Curve) -> Curve:
        """The factor is reckoned at powers of two and held until the next: it changes slowly with the batch."""
        neighbours = self._neighbours(size)
        factors = [self._factor(model, size, 2**power, neighbours) for power in range(len(curve).bit_length())]
        mine = (
            footprint(self._problem.profile, model, size.sms, size.share_pct / 100, b + 1) for b in range(len(curve))
        )
        slowed = (round(one.slowed(factors[one.side.batch.bit_length() - 1])) for one in mine)
        return tuple(accumulate(slowed, max))

    def _factor(self, model: str, size: Size, rows: int, neighbours: list[Side]) -> float:
        assert self._interference is not None
        mine = footprint(self._problem.profile, model, size.sms, size.share_pct / 100, rows).side
        return max((self._interference.slowdown(mine, [other]) for other in neighbours), default=1.0)

    def _neighbours(self, size: Size) -> list[Side]:
        """The smallest and the largest batch of every model on all that `size` leaves of a device, if anything."""
        device, profile = self._problem.devices[0], self._problem.profile
        rest = [s for s in device.sizes() if s.share_pct <= 100 - size.share_pct + _NOTHING][-1:]
        return [
            footprint(profile, name, other.sms, other.share_pct / 100, rows).side
            for name, model in self._problem.models.items()
            for other in rest
            if other.sms >= profile.sizes(name)[0]
            for rows in (1, min(model.max_batch, profile.max_batch(name, other.sms)))
        ]


class _Board:
    """What is free, what is placed, and what could not be served yet."""

    def __init__(self, problem: Problem, curves: _Curves, most_per_device: int, *, shares_in_time: bool) -> None:
        self._problem = problem
        self._curves = curves
        self._shares_in_time = shares_in_time
        self._placed: list[_Placed] = []
        self._unserved: dict[str, float] = {}
        self._rates: dict[tuple[str, Size], float] = {}
        self._free = [_fresh(device, most_per_device) for device in problem.devices]

    def serve(self, model: Model) -> None:
        """Place gpulets until the model's demand is met or nothing free helps."""
        left = self._problem.demand.get(model.name, 0.0)
        while left > _NOTHING and not self._join(model, left):
            found = self._best_fit(model, left)
            if not found:
                self._unserved[model.name] = left
                return
            piece, size = found[0]
            share = self._share(model, size, left)
            served = min(left, saturated_rate(share))
            cycle = residual(share) if served == left else saturated(share)
            self._cut(piece, size)
            tenants = ((model, served),)
            self._placed.append(_Placed(piece, size, tenants, cycle if cycle.batches else saturated(share)))
            left -= served

    def outcome(self) -> Plan | Infeasible:
        """The plan, or what stands in its way."""
        placed = sorted(self._placed, key=lambda p: (p.piece.device.index, p.piece.offset))
        plan = Plan(
            self._problem.devices,
            tuple(_gpulet(place, item) for place, item in enumerate(placed)),
            promises={name: self._promise(model) for name, model in self._problem.models.items()},
        )
        return self._refusal(plan) if self._unserved else self._problem.within_memory(plan)

    def _share(self, model: Model, size: Size, rate: float) -> Share:
        return Share(self._curves(model.name, size), model.slo, rate, model.max_batch)

    def _join(self, model: Model, rate: float) -> bool:
        """Temporal sharing: take turns on the smallest gpulet whose tenants allow it."""
        open_to_all = enumerate(self._placed) if self._shares_in_time else ()
        for place, item in sorted(open_to_all, key=lambda found: found[1].size):
            tenants = (*item.tenants, (model, rate))
            if not self._usable(model, item.size) or model in (t for t, _ in item.tenants):
                continue
            cycle = squishy([self._share(m, item.size, r) for m, r in tenants])
            if cycle.batches:
                self._placed[place] = replace(item, tenants=tenants, cycle=cycle)
                return True
        return False

    def _best_fit(self, model: Model, rate: float) -> list[tuple[_Piece, Size]]:
        """The smallest free piece that holds the ideal size, cut to it; else the largest piece of any use; or nothing."""
        options: list[tuple[bool, float, int, float, _Piece, Size]] = []
        distinct = {(p.length, p.cuts_left, p.device.kind.name, p.device.mechanism): p for p in reversed(self._free)}
        for piece in distinct.values():
            rates = {size: r for size in piece.device.sizes() if (r := self._affords(model, size)) > 0}
            fitting = [size for size in rates if piece.device.length(size) <= piece.length + _NOTHING]
            if not fitting:
                continue
            ideal = _ideal(rates, rate)
            is_short = piece.device.length(ideal) > piece.length + _NOTHING
            size = ideal if not is_short and piece.cuts_left > 1 else max(fitting)
            rank = -piece.length if is_short else piece.length
            options.append((is_short, rank, piece.device.index, piece.offset, piece, size))
        return [(piece, size) for *_, piece, size in sorted(options, key=lambda option: option[:4])]

    def _affords(self, model: Model, size: Size) -> float:
        key = model.name, size
        if key not in self._rates:
            self._rates[key] = saturated_rate(self._share(model, size, 1.0)) if self._usable(model, size) else 0.0
        return self._rates[key]

    def _usable(self, model: Model, size: Size) -> bool:
        """Nobody knows how slow a model is below its smallest measured size."""
        return size.sms >= self._problem.profile.sizes(model.name)[0]

    def _cut(self, piece: _Piece, size: Size) -> None:
        """Take `size` off the front of `piece`; what remains is free if a gpulet can still be cut from it."""
        self._free.remove(piece)
        taken = piece.device.length(size)
        rest = replace(piece, offset=piece.offset + taken, length=piece.length - taken, cuts_left=piece.cuts_left - 1)
        smallest = piece.device.length(piece.device.sizes()[0])
        if rest.cuts_left > 0 and rest.length >= smallest - _NOTHING:
            self._free.append(rest)

    def _promise(self, model: Model) -> Promise:
        demand = self._problem.demand.get(model.name, 0.0)
        mine = [item for item in self._placed if model in (tenant for tenant, _ in item.tenants)]
        throughput = sum(self._carries(item, model) for item in mine)
        return Promise(demand, throughput, max((item.cycle.worst for item in mine), default=0), model.slo)

    def _carries(self, item: _Placed, model: Model) -> float:
        """A lone tenant may use all of its gpulet; of several, each has its batch in every cycle."""
        place = [tenant for tenant, _ in item.tenants].index(model)
        planned = item.cycle.batches[place] * SECOND / item.cycle.duty
        return planned if len(item.tenants) > 1 else max(planned, self._affords(model, item.size))

    def _refusal(self, plan: Plan) -> Infeasible:
        name = next(iter(self._unserved))
        model, left = self._problem.models[name], self._unserved[name]
        best = max(
            (self._affords(model, size) for device in self._problem.devices for size in device.sizes()),
            default=0.0,
        )
        if best <= 0:
            constraint = f"no size runs even one row twice within its SLO of {to_ms(model.slo):g} ms"
            return Infeasible(name, constraint, "raise its SLO", self._unserved, plan)
        demand = self._problem.demand[name]
        constraint = f"{demand - left:.1f} of {demand:.1f} rows/s fit on {len(self._problem.devices)} devices"
        nearest = f"lower its rate by {left:.1f}/s, or add a device (a whole one carries {best:.1f}/s)"
        return Infeasible(name, constraint, nearest, self._unserved, plan)


def _fresh(device: Device, most_per_device: int) -> _Piece:
    if device.mechanism is Mechanism.MIG:
        msg = f"device {device.index}: elastic partitioning cuts mps, green, cpu and whole devices, not mig"
        raise PlanError(msg)
    return _Piece(device, 0, device.room, most_per_device)


def _ideal(rates: dict[Size, float], rate: float) -> Size:
    """The smaller of the knee (MaxEfficientPartition) and the smallest sufficient size (MinRequiredPartition)."""
    sizes = sorted(rates)
    efficient = sizes[knee([s.share_pct for s in sizes], [rates[s] for s in sizes])]
    required = next((s for s in sizes if rates[s] >= rate), sizes[-1])
    return min(efficient, required)


def _gpulet(place: int, item: _Placed) -> Gpulet:
    turns = _turns(item)
    return Gpulet(place, item.piece.device.index, item.size, int(item.piece.offset), item.cycle.duty, tuple(turns))


def _turns(item: _Placed) -> Iterator[Turn]:
    shared = zip(item.tenants, item.cycle.batches, item.cycle.latencies, strict=True)
    return (Turn(model.name, batch, rate, latency) for (model, rate), batch, latency in shared)
