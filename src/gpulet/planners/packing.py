"""Ours: gpulets of the sizes that give most rows/s for their room, residues merged in time, packed by best fit.

Unlike elastic partitioning it decides all pieces before it places any, so that what fits best can be found: full
gpulets at each model's most economical size, a last piece of the smallest sufficient size, last pieces of several
models merged onto one gpulet where that saves room (squishy bin packing, Nexus, SOSP 2019, section 6.1), then best-fit
decreasing over the devices. There is no limit to the gpulets of a device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, Size
from gpulet.duty import Cycle, Share, residual, saturated, saturated_rate, squishy
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import SECOND, to_ms

_NOTHING = 1e-6
_CLOSEST = 8
"""A residue is tried beside so many others: those with the nearest objectives, which share a cycle best."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A gpulet that wants a place."""

    size: Size
    tenants: tuple[tuple[Model, float], ...]
    cycle: Cycle


def packing(problem: Problem, *, merges: bool = True, spreads: bool = False) -> Plan | Infeasible:
    """Plan all pieces, then place them. Devices must be equal; raises `PlanError` for MIG, whose slots are not free.

    `spreads`: each piece on the emptiest device instead, so that heavy neighbours part.
    """
    return _Packing(problem, merges=merges, spreads=spreads).plan()


class _Packing:
    def __init__(self, problem: Problem, *, merges: bool, spreads: bool) -> None:
        self._problem = problem
        self._spreads = spreads
        self._merges = merges
        self._device = problem.devices[0]
        if self._device.mechanism is Mechanism.MIG:
            msg = f"device {self._device.index}: packing cuts mps, green, cpu and whole devices, not mig"
            raise PlanError(msg)

    def plan(self) -> Plan | Infeasible:
        wanted = [(m, r) for m in self._problem.models.values() if (r := self._problem.demand.get(m.name, 0.0)) > 0]
        hopeless = next((m for m, _ in wanted if not self._carries(m)), None)
        if hopeless:
            constraint = f"no size runs even one row twice within its SLO of {to_ms(hopeless.slo):g} ms"
            unserved = {hopeless.name: self._problem.demand[hopeless.name], **dict(self._others(hopeless))}
            return Infeasible(hopeless.name, constraint, "raise its SLO", unserved, Plan(self._problem.devices))
        full: list[_Piece] = []
        rest: list[_Piece] = []
        for model, rate in wanted:
            pieces = list(self._pieces(model, rate))
            full += pieces[:-1]
            rest += pieces[-1:]
        return self._place(full + (self._merged(rest) if self._merges else rest))

    def _others(self, hopeless: Model) -> Iterator[tuple[str, float]]:
        """The demand that was not even tried."""
        return ((n, r) for n, r in self._problem.demand.items() if r > 0 and n != hopeless.name)

    def _share(self, model: Model, size: Size, rate: float) -> Share:
        return Share(self._problem.profile.curve(model.name, size.sms), model.slo, rate, model.max_batch)

    def _carries(self, model: Model) -> dict[Size, float]:
        """Rows/s by size, for the sizes on which the model was measured and is in time."""
        smallest = self._problem.profile.sizes(model.name)[0]
        sizes = (size for size in self._device.sizes() if size.sms >= smallest)
        return {size: rate for size in sizes if (rate := saturated_rate(self._share(model, size, 1.0))) > 0}

    def _pieces(self, model: Model, rate: float) -> Iterator[_Piece]:
        """Full gpulets at the most economical size, then the smallest that carries the rest."""
        carries = self._carries(model)
        economical = max(carries, key=lambda size: carries[size] / self._device.length(size))
        while rate > carries[economical] + _NOTHING:
            cycle = saturated(self._share(model, economical, carries[economical]))
            yield _Piece(economical, ((model, carries[economical]),), cycle)
            rate -= carries[economical]
        size = min((s for s in carries if carries[s] >= rate - _NOTHING), key=self._device.length)
        share = self._share(model, size, rate)
        cycle = residual(share)
        yield _Piece(size, ((model, rate),), cycle if cycle.batches else saturated(share))

    def _merged(self, rest: Sequence[_Piece]) -> list[_Piece]:
        """Largest first, each residue joins the gpulet where it saves most room, if it saves any."""
        merged: list[_Piece] = []
        for piece in sorted(rest, key=lambda p: (-self._length(p), p.tenants[0][0].name)):
            slo = piece.tenants[0][0].slo
            near = sorted(merged, key=lambda other: abs(min(m.slo for m, _ in other.tenants) - slo))[:_CLOSEST]
            options = [(other, joint) for other in near for joint in self._joint(other, piece)]
            if options:
                other, joint = max(options, key=lambda option: self._saving(option[0], piece, option[1]))
                merged[merged.index(other)] = joint
            else:
                merged.append(piece)
        return merged

    def _saving(self, one: _Piece, other: _Piece, joint: _Piece) -> float:
        return self._length(one) + self._length(other) - self._length(joint)

    def _joint(self, one: _Piece, other: _Piece) -> Iterator[_Piece]:
        """The smallest gpulet on which both can take turns, if it takes less room than two."""
        tenants = (*one.tenants, *other.tenants)
        smallest = max(self._problem.profile.sizes(model.name)[0] for model, _ in tenants)
        for size in self._device.sizes():
            if size.sms < smallest or self._device.length(size) < max(self._length(one), self._length(other)):
                continue
            if self._device.length(size) >= self._length(one) + self._length(other):
                return
            cycle = squishy([self._share(m, size, r) for m, r in tenants])
            if cycle.batches:
                yield _Piece(size, tenants, cycle)
                return

    def _length(self, piece: _Piece) -> float:
        return self._device.length(piece.size)

    def _place(self, pieces: Sequence[_Piece]) -> Plan | Infeasible:
        """Best fit decreasing: the device with least room left that still has enough."""
        left = {device.index: device.room for device in self._problem.devices}
        gpulets: list[Gpulet] = []
        homeless: list[_Piece] = []
        for piece in sorted(pieces, key=lambda p: (-self._length(p), p.tenants[0][0].name)):
            fits = [d for d in self._problem.devices if left[d.index] >= self._length(piece) - _NOTHING]
            if not fits:
                homeless.append(piece)
                continue
            device = min(fits, key=lambda d: (-left[d.index] if self._spreads else left[d.index], d.index))
            gpulets.append(_gpulet(piece, device, round(device.room - left[device.index])))
            left[device.index] -= self._length(piece)
        ordered = sorted(gpulets, key=lambda g: (g.device, g.offset))
        numbered = tuple(replace(gpulet, id=place) for place, gpulet in enumerate(ordered))
        placed = [piece for piece in pieces if piece not in homeless]
        promises = {m.name: self._promise(m, placed) for m in self._problem.models.values()}
        plan = Plan(self._problem.devices, numbered, promises=promises)
        return self._refusal(homeless, plan) if homeless else self._problem.within_memory(plan)

    def _promise(self, model: Model, placed: Sequence[_Piece]) -> Promise:
        """A gpulet that is asked for more than planned goes round without idling."""
        mine = [piece for piece in placed if any(m is model for m, _ in piece.tenants)]
        throughput = sum(_batch(p, model) * SECOND / sum(p.cycle.latencies) for p in mine)
        worst = max((p.cycle.worst for p in mine), default=0)
        return Promise(self._problem.demand.get(model.name, 0.0), throughput, worst, model.slo)

    def _refusal(self, homeless: Sequence[_Piece], plan: Plan) -> Infeasible:
        unserved: dict[str, float] = {}
        for model, rate in (tenant for piece in homeless for tenant in piece.tenants):
            unserved[model.name] = unserved.get(model.name, 0.0) + rate
        name = max(unserved, key=lambda n: unserved[n])
        demand, count = self._problem.demand[name], len(self._problem.devices)
        constraint = f"{demand - unserved[name]:.1f} of {demand:.1f} rows/s fit on {count} devices"
        best = max(self._carries(self._problem.models[name]).values())
        nearest = f"lower its rate by {unserved[name]:.1f}/s, or add a device (a whole one carries {best:.1f}/s)"
        return Infeasible(name, constraint, nearest, unserved, plan)


def _batch(piece: _Piece, model: Model) -> int:
    return next(b for (m, _), b in zip(piece.tenants, piece.cycle.batches, strict=True) if m is model)


def _gpulet(piece: _Piece, device: Device, offset: int) -> Gpulet:
    shared = zip(piece.tenants, piece.cycle.batches, piece.cycle.latencies, strict=True)
    turns = tuple(Turn(model.name, batch, rate, latency) for (model, rate), batch, latency in shared)
    return Gpulet(0, device.index, piece.size, offset, piece.cycle.duty, turns)
