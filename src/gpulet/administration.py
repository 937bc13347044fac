"""Admin's calls carried out: each becomes an event of the core, and is answered by what the core then decides."""

import asyncio
from dataclasses import replace
from http import HTTPStatus

import msgspec

from gpulet.api.admin import Admin, Document
from gpulet.api.catalog import Catalog
from gpulet.core.control import Controlled
from gpulet.core.decisions import change_row
from gpulet.core.messages import (
    DeviceIn,
    DeviceOut,
    Enlist,
    Event,
    Force,
    Freeze,
    Hint,
    Revise,
)
from gpulet.core.replan import Demand
from gpulet.deciding import Deciding, Decision
from gpulet.drivers.live import Live
from gpulet.errors import GpuletError, RequestError
from gpulet.fleetfile import Site
from gpulet.newcomers import Newcomers
from gpulet.plan import Plan
from gpulet.planfile import read_plan, to_doc, to_json
from gpulet.recent import Recent
from gpulet.residency import Residency
from gpulet.systems import find_system
from gpulet.units import SECOND, from_ms, to_ms
from gpulet.whatif import WhatIf, ask

_MOST_MINUTES = 10.0
_LONGEST_S = 10.0


class Administration:
    """Of one server with live control."""

    def __init__(
        self,
        site: Site,
        live: Live,
        core: Controlled,
        catalog: Catalog,
        residency: Residency,
        newcomers: Newcomers,
        recent: Recent,
        deciding: Deciding,
    ) -> None:
        self._site = site
        self._live = live
        self._core = core
        self._catalog = catalog
        self._residency = residency
        self._newcomers = newcomers
        self._adding = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._recent = recent
        self._deciding = deciding
        self._tickets = 0

    def demand(self) -> Demand:
        """What live control sees."""
        return self._core.demand

    def status(self) -> Document:
        """As `Admin` says."""
        core, problem = self._core, self._core.problem
        used = core.in_force.in_use
        return {
            "system": self._site.name,
            "mode": self._site.config.control.mode,
            "frozen": core.is_frozen,
            "changing": core.is_changing,
            "changes": self._live.metrics.changes,
            "models": {
                name: {
                    "slo_ms": to_ms(model.slo),
                    "rate": core.demand.rates.get(name, 0.0),
                    "target": core.demand.targets.get(name, 0.0),
                    "planned": problem.demand.get(name, 0.0),
                    "ready": self._catalog.is_ready(name),
                }
                for name, model in problem.models.items()
            },
            "devices": [
                {"device": d.index, "kind": d.kind.name, "in_use": d.index in used, "out": d.index in core.out}
                for d in problem.devices
            ],
        }

    def plan(self) -> Document:
        """As `Admin` says."""
        return to_json(to_doc(self._core.in_force.folded(), self._site.name, 0))

    def history(self) -> list[Document]:
        """As `Admin` says."""
        return [dict(change_row(*entry)) for entry in self._core.history]

    async def freeze(self, *, is_on: bool) -> Document:
        """As `Admin` says."""
        self._live.feed(Freeze(is_on))
        return {"frozen": is_on}

    async def force(self, plan: bytes) -> Document:
        """As `Admin` says."""
        try:
            wanted = read_plan(plan, self._core.problem, "the plan")
        except GpuletError as error:
            raise RequestError(str(error)) from error
        return await self._force(wanted)

    async def rollback(self) -> Document:
        """As `Admin` says."""
        if self._core.before is None:
            msg = "there was no other plan before the one in force"
            raise RequestError(msg, HTTPStatus.CONFLICT)
        return await self._force(self._core.before)

    async def _force(self, plan: Plan) -> Document:
        self._tickets = ticket = self._tickets + 1
        decision = await self._deciding.decided(Force(ticket, plan))
        if not decision.is_adopted:
            raise _not_adopted(decision)
        return _told(decision)

    async def shift(self, device: int, *, is_out: bool) -> Document:
        """As `Admin` says."""
        indices = [d.index for d in self._core.problem.devices]
        if device not in indices:
            msg = f"device {device} is not one of 0 to {max(indices)}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        if is_out and self._core.out | {device} >= set(indices):
            msg = f"device {device} is the last one in use"
            raise RequestError(msg, HTTPStatus.CONFLICT)
        return await self._after(DeviceOut(device) if is_out else DeviceIn(device))

    async def revise(self, model: str, slo_ms: float) -> Document:
        """As `Admin` says."""
        self._known(model)
        try:
            revised = replace(self._core.problem.models[model], slo=from_ms(slo_ms))
        except GpuletError as error:
            raise RequestError(str(error)) from error
        self._catalog.models[model].model = revised
        return await self._after(Revise(revised))

    async def hint(self, model: str, rate: float) -> Document:
        """As `Admin` says."""
        self._known(model)
        self._live.feed(Hint(model, rate * self._core.problem.rows_of(model).mean))
        return {"model": model, "rate": rate}

    async def add(self, model: str) -> Document:
        """As `Admin` says."""
        async with self._adding:
            event = None if model in self._catalog.models else await self._brought(model)
        if event:
            return await self._enlist(model, event)
        self._known(model)
        await self._residency.load(model)
        return {"model": model, "ready": self._catalog.is_ready(model)}

    async def _brought(self, model: str) -> Enlist:
        if self._core.is_frozen:
            msg = f"model {model[:256]} is new, and the plan is frozen"
            raise RequestError(msg, HTTPStatus.CONFLICT)
        return await self._newcomers.bring(model)

    async def _enlist(self, model: str, event: Enlist) -> Document:
        """One that has not been there; where no plan has a place for it, it is not loaded either."""
        decision = await self._deciding.decided(event)
        if decision.is_adopted:
            return {"model": model, "ready": await self._comes_up(model), **_told(decision)}
        self._live.feed(Hint(model, 0.0))
        await self._residency.unload(model)
        raise _not_adopted(decision)

    async def _comes_up(self, model: str) -> bool:
        """A plan that is in force waits for the last batches of the one before where those stand in its place."""
        return await self._deciding.until(lambda: self._catalog.is_ready(model), _LONGEST_S)

    async def remove(self, model: str) -> Document:
        """As `Admin` says: its part of the devices is the others' from the next plan on."""
        self._known(model)
        await self._residency.unload(model)
        self._live.feed(Hint(model, 0.0))
        return {"model": model, "ready": self._catalog.is_ready(model)}

    async def what_if(self, asked: Document) -> Document:
        """`{"minutes": M}` and `{"plan": ...}` or `{"system": NAME}`; neither: a fresh plan of the system that serves."""
        minutes = asked.get("minutes", _MOST_MINUTES)
        if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= _MOST_MINUTES:
            msg = f"minutes must be above 0, at most {_MOST_MINUTES:g}, is {minutes!r}"
            raise RequestError(msg)
        if self._asking.locked():
            msg = "another what-if is being answered"
            raise RequestError(msg, HTTPStatus.TOO_MANY_REQUESTS)
        try:
            async with self._asking:
                return await ask(await self._what_if(asked, round(minutes * 60 * SECOND)))
        except RequestError:
            raise
        except GpuletError as error:
            raise RequestError(str(error)) from error

    async def _what_if(self, asked: Document, back: int) -> WhatIf:
        fleet, problem, system = self._site.config.fleet, self._core.problem, str(asked.get("system", ""))
        if system:
            find_system(system)
        arrivals = await asyncio.to_thread(self._recent.arrivals(problem.sources, self._live.timer.now(), back))
        if not len(arrivals):
            msg = f"nothing came in the last {back / SECOND:g} s"
            raise RequestError(msg, HTTPStatus.CONFLICT)
        plan = read_plan(msgspec.json.encode(asked["plan"]), problem, "the plan") if "plan" in asked else None
        serving = (self._site.name, fleet.planner, fleet.dispatcher)
        return WhatIf(serving, system, problem, plan, arrivals, self._site.limits)

    async def _after(self, event: Event) -> Document:
        """What the core decides because of it."""
        if self._core.is_frozen:
            self._live.feed(event)
            return {"chosen": "noted; the plan is frozen"}
        return _told(await self._deciding.decided(event))

    def _known(self, model: str) -> None:
        if model not in self._core.problem.models:
            msg = f"unknown model {model[:256]!r}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)


def _not_adopted(decision: Decision) -> RequestError:
    why = ": ".join(filter(None, (decision.told.chosen, decision.told.considered)))
    return RequestError(why, HTTPStatus.CONFLICT)


def _told(decision: Decision) -> Document:
    told = decision.told
    return {
        "number": told.number,
        "seen": told.seen,
        "considered": told.considered,
        "chosen": told.chosen,
        "changed": decision.is_adopted,
    }


_FITS: type[Admin] = Administration
"""The type checker's proof."""
