"""Models that come to the fleet while it serves: read from its file as that is now, then known to all who have to do with them."""

import asyncio
from dataclasses import dataclass, replace
from http import HTTPStatus

from gpulet.api.catalog import Catalog
from gpulet.config import ModelSection
from gpulet.core.messages import Enlist
from gpulet.errors import GpuletError, RequestError
from gpulet.fleetfile import Site, open_site
from gpulet.loads import Files, served
from gpulet.problems import load_profile, make_problem
from gpulet.residency import Residency

_RATE = 1.0
"""Requests/s of a newcomer of which the fleet file does not say how many come."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What the core is to be told of it, and the `site` as the fleet file is now, less all other models."""

    site: Site
    section: ModelSection
    enlist: Enlist


def read_newcomer(site: Site, name: str) -> Newcomer:
    """A model that the fleet file, or a bare repository, has now. Reads files: call it on a thread.

    Its latencies have the margins of the others, but for the front-end's time, which counts its own requests alone. Raises
    `GpuletError` for what cannot be served, `RequestError` for a model that is not there.
    """
    if site.target is None:
        msg = f"unknown model {name!r}, and no fleet file to look it up"
        raise RequestError(msg, HTTPStatus.NOT_FOUND)
    now = open_site(site.target, system=site.name)
    section = next((section for section in now.sections if section.name == name), None)
    if section is None:
        why = now.offer.found.refused.get(name, f"{site.target.name} does not have it")
        msg = f"unknown model {name[:256]!r}: {why}"
        raise RequestError(msg, HTTPStatus.NOT_FOUND)
    section = section if section.rate else section.model_copy(update={"rate": _RATE})
    artifacts = {name: now.artifacts[name]} if name in now.artifacts else {}
    alone = replace(now, sections=(section,), applications=(), artifacts=artifacts)
    problem = make_problem(alone, load_profile(alone))
    points = tuple(point for point in problem.profile.points if point.model == name)
    return Newcomer(alone, section, Enlist(problem.models[name], points, problem.demand[name], problem.rows_of(name)))


class Newcomers:
    """Of one server."""

    def __init__(self, site: Site, files: Files, residency: Residency, catalog: Catalog) -> None:
        self._site = site
        self._files = files
        self._residency = residency
        self._catalog = catalog

    async def bring(self, name: str) -> Enlist:
        """What the core is to be told: where a plan has a place for it, it is loaded there. Raises `RequestError`; then all is as before."""
        try:
            newcomer = await asyncio.to_thread(read_newcomer, self._site, name)
        except RequestError:
            raise
        except GpuletError as error:
            raise RequestError(str(error)) from error
        model = newcomer.enlist.model
        self._files.admit(newcomer.site, model)
        self._catalog.models[name] = served(newcomer.site, newcomer.section, model)
        try:
            found = await asyncio.to_thread(self._files.find, name)
            self._residency.admit(newcomer.enlist, found, is_pinned=newcomer.section.pin)
            await self._residency.load(name)
        except BaseException as error:
            self._residency.dismiss(name)
            del self._catalog.models[name]
            if isinstance(error, GpuletError) and not isinstance(error, RequestError):
                raise RequestError(str(error)) from error
            raise
        return newcomer.enlist
