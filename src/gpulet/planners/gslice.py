"""Start shares for self-tuned spatial sharing (GSLICE, Dhakal et al., SoCC 2020): every model on one device, no replicas.

A model needs the smallest share from which on its saturated rate covers the demand; that is where the tuner of the
dispatcher (dispatchers/gslice.py) ends. The neediest model goes first, to the device with the most room. Alone on a
device it starts with all of it; several start with shares in proportion to their knees that fill the device, GSLICE's
re-adjustment, but none with less than it needs. Shares are whole SMs or cores; the plan's gpulets say where they start.

Departures: the original has one device, and no demand to plan for: it admits until nothing is free, we refuse what the
tuner could never hold.
"""

from dataclasses import dataclass
from math import ceil

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, Size
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.errors import PlanError
from gpulet.knee import knee
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Resident, Turn
from gpulet.units import to_ms

LEAST_SHARE = 0.05
"""GSLICE gives no model less than 5 % of a device."""


@dataclass(frozen=True, slots=True)
class _Tenant:
    """A model on its device, and the fewest SMs it needs there."""

    model: Model
    need: int


def gslice(problem: Problem) -> Plan | Infeasible:
    """Place every model and give it a start share. Raises `PlanError` on devices that are not shared by mps or cores."""
    for device in problem.devices:
        if device.mechanism not in {Mechanism.MPS, Mechanism.CPU}:
            msg = f"device {device.index}: gslice sets shares of mps and cpu devices, not of {device.mechanism}"
            raise PlanError(msg)
    homes = _Homes(problem)
    needs = {name: homes.need(model, problem.devices[0]) for name, model in problem.models.items()}
    for name in sorted(needs, key=lambda name: (-(needs[name] or problem.devices[0].kind.sms), name)):
        homes.place(problem.models[name])
    return homes.outcome()


class _Homes:
    """Who lives where."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tenants: dict[int, list[_Tenant]] = {device.index: [] for device in problem.devices}
        self._refused: dict[str, Model] = {}

    def place(self, model: Model) -> None:
        """On the device with the most room, where its need fits."""
        needs = {device.index: self.need(model, device) for device in self._problem.devices}
        fitting = [d for d in self._problem.devices if 0 < needs[d.index] <= self._room(d) and self._holds(d, model)]
        if fitting:
            chosen = max(fitting, key=lambda device: (self._room(device), -device.index))
            self._tenants[chosen.index].append(_Tenant(model, needs[chosen.index]))
        elif self._demand(model) > 0:
            self._refused[model.name] = model

    def need(self, model: Model, device: Device) -> int:
        """The smallest share from which on every share covers the demand; 0 when the whole device does not."""
        enough = 0
        for sms in range(device.kind.sms, self._least(model, device) - 1, -1):
            rate = saturated_rate(self._share(model, sms))
            if not rate or rate < self._demand(model):
                break
            enough = sms
        return enough

    def outcome(self) -> Plan | Infeasible:
        """The plan, or what stands in its way."""
        gpulets: list[Gpulet] = []
        residents: list[Resident] = []
        promises: dict[str, Promise] = {}
        for device in self._problem.devices:
            offset = 0
            tenants = self._tenants[device.index]
            for tenant, sms in zip(tenants, self._start_shares(device, tenants), strict=True):
                model = tenant.model
                gpulet = self._gpulet(len(gpulets), device, offset, model, sms)
                gpulets.append(gpulet)
                residents.append(Resident(device.index, model.name, model.memory))
                rate = saturated_rate(self._share(model, sms))
                promises[model.name] = Promise(self._demand(model), rate, 2 * gpulet.duty_cycle, model.slo)
                offset += sms
        plan = Plan(self._problem.devices, tuple(gpulets), residents=tuple(residents), promises=promises)
        return self._refusal(plan) if self._refused else plan

    def _demand(self, model: Model) -> float:
        return self._problem.demand.get(model.name, 0.0)

    def _share(self, model: Model, sms: int) -> Share:
        return Share(self._problem.profile.curve(model.name, sms), model.slo, self._demand(model), model.max_batch)

    def _least(self, model: Model, device: Device) -> int:
        return max(self._problem.profile.sizes(model.name)[0], ceil(LEAST_SHARE * device.kind.sms))

    def _room(self, device: Device) -> int:
        return device.kind.sms - sum(tenant.need for tenant in self._tenants[device.index])

    def _holds(self, device: Device, model: Model) -> bool:
        used = sum(tenant.model.memory for tenant in self._tenants[device.index])
        return not device.kind.memory or used + model.memory <= device.kind.memory

    def _start_shares(self, device: Device, tenants: list[_Tenant]) -> list[int]:
        """In proportion to the knees, except for those who need more than that."""
        knees = {tenant: self._knee(tenant.model, device) for tenant in tenants}
        tight: list[_Tenant] = []
        while True:
            easy = [tenant for tenant in tenants if tenant not in tight]
            room = device.kind.sms - sum(tenant.need for tenant in tight)
            scale = room / max(1, sum(knees[tenant] for tenant in easy))
            short = [tenant for tenant in easy if knees[tenant] * scale < tenant.need]
            if not short:
                return [tenant.need if tenant in tight else int(knees[tenant] * scale) for tenant in tenants]
            tight += short

    def _knee(self, model: Model, device: Device) -> int:
        sizes = range(self._least(model, device), device.kind.sms + 1)
        return sizes[knee(sizes, [saturated_rate(self._share(model, sms)) for sms in sizes])]

    def _gpulet(self, place: int, device: Device, offset: int, model: Model, sms: int) -> Gpulet:
        cycle = saturated(self._share(model, sms))
        turn = Turn(model.name, cycle.batches[0], self._demand(model), cycle.latencies[0])
        size = Size(sms, 100 * sms / device.kind.sms, f"{sms} of {device.kind.sms}")
        start = offset * 100 // device.kind.sms if device.mechanism is Mechanism.MPS else offset
        return Gpulet(place, device.index, size, start, cycle.duty, (turn,))

    def _refusal(self, plan: Plan) -> Infeasible:
        unserved = {name: self._demand(model) for name, model in self._refused.items()}
        name, model = next(iter(self._refused.items()))
        demand = self._demand(model)
        device = max(self._problem.devices, key=self._room)
        whole = saturated_rate(self._share(model, device.kind.sms))
        if not whole:
            constraint = f"a whole device does not run even one row twice within its SLO of {to_ms(model.slo):g} ms"
            return Infeasible(name, f"{constraint}: 0 of {demand:.1f} rows/s", "raise its SLO", unserved, plan)
        if not self.need(model, device):
            constraint = f"it lives on one device, and a whole one carries {whole:.1f} of {demand:.1f} rows/s"
            return Infeasible(name, constraint, f"lower its rate by {demand - whole:.1f}/s", unserved, plan)
        room = self._room(device)
        beside = saturated_rate(self._share(model, room)) if room >= self._least(model, device) else 0.0
        constraint = f"{demand:.1f} rows/s need {self.need(model, device)} SMs of one device, and {room} are left"
        nearest = f"add a device, or lower its rate by {demand - min(demand, beside):.1f}/s"
        return Infeasible(name, constraint, nearest, unserved, plan)
