"""Admin's calls over HTTP: what serves and why, and how to change it. For those who bear the token, or own the Unix socket.

They are under `/gpulet/`, beside the protocol's own paths. Bodies and answers are JSON; an error is `{"error": ...}`.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpulet.api.bodies import HANDLERS, body_of, document
from gpulet.errors import RequestError

Document = dict[str, Any]
MOST_PLAN: Final = 16 * 1024 * 1024
"""Bytes of a plan."""
FORBIDDEN: Final = "admin calls need a token ([server] token_file), or the server's Unix socket"


class Admin(Protocol):
    """Who carries them out; all of it on the loop. Each raises `RequestError` for what cannot be."""

    def status(self) -> Document:
        """What serves, for which rates, on which devices."""
        ...

    def plan(self) -> Document:
        """The plan in force, as `plan --json` prints one."""
        ...

    def history(self) -> list[Document]:
        """Decisions, the latest last."""
        ...

    async def freeze(self, *, is_on: bool) -> Document:
        """The plan in force stays, or may change again."""
        ...

    async def force(self, plan: bytes) -> Document:
        """Bring this plan into force; what became of it."""
        ...

    async def rollback(self) -> Document:
        """Bring back the plan before this one."""
        ...

    async def shift(self, device: int, *, is_out: bool) -> Document:
        """Use a device no more, or again; the decision that followed."""
        ...

    async def revise(self, model: str, slo_ms: float) -> Document:
        """Give a model another objective."""
        ...

    async def hint(self, model: str, rate: float) -> Document:
        """Plan for that many requests/s of a model, for a minute whether they come or not."""
        ...

    async def add(self, model: str) -> Document:
        """Serve a model of the repository that is not served."""
        ...

    async def remove(self, model: str) -> Document:
        """Serve a model no more."""
        ...

    async def what_if(self, asked: Document) -> Document:
        """What another plan would have made of the last minutes."""
        ...


_Page = Callable[[Request], Awaitable[Response]]


def admin_routes(admin: Admin) -> list[Route]:
    """All of them."""
    pages = _Pages(admin)
    get: dict[str, _Page] = {
        "/gpulet/status": pages.status,
        "/gpulet/plan": pages.plan,
        "/gpulet/history": pages.history,
    }
    post: dict[str, _Page] = {
        "/gpulet/freeze": pages.freeze,
        "/gpulet/thaw": pages.thaw,
        "/gpulet/force": pages.force,
        "/gpulet/rollback": pages.rollback,
        "/gpulet/what-if": pages.what_if,
        "/gpulet/devices/{device:int}/drain": pages.drain,
        "/gpulet/devices/{device:int}/restore": pages.restore,
        "/gpulet/models/{name}/slo": pages.revise,
        "/gpulet/models/{name}/rate": pages.hint,
        "/gpulet/models/{name}/add": pages.add,
        "/gpulet/models/{name}/remove": pages.remove,
    }
    routes = [Route(path, page) for path, page in get.items()]
    return routes + [Route(path, page, methods=["POST"]) for path, page in post.items()]


def make_admin_app(admin: Admin) -> Starlette:
    """The ASGI app of the Unix socket."""
    return Starlette(routes=admin_routes(admin), exception_handlers=HANDLERS)


class _Pages:
    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._admin.status())

    async def plan(self, request: Request) -> Response:
        return JSONResponse(self._admin.plan())

    async def history(self, request: Request) -> Response:
        return JSONResponse(self._admin.history())

    async def freeze(self, request: Request) -> Response:
        return JSONResponse(await self._admin.freeze(is_on=True))

    async def thaw(self, request: Request) -> Response:
        return JSONResponse(await self._admin.freeze(is_on=False))

    async def force(self, request: Request) -> Response:
        return JSONResponse(await self._admin.force(await body_of(request, MOST_PLAN)))

    async def rollback(self, request: Request) -> Response:
        return JSONResponse(await self._admin.rollback())

    async def what_if(self, request: Request) -> Response:
        return JSONResponse(await self._admin.what_if(await document(request, dict[str, Any], MOST_PLAN)))

    async def drain(self, request: Request) -> Response:
        return JSONResponse(await self._admin.shift(request.path_params["device"], is_out=True))

    async def restore(self, request: Request) -> Response:
        return JSONResponse(await self._admin.shift(request.path_params["device"], is_out=False))

    async def revise(self, request: Request) -> Response:
        slo_ms = _number(await document(request, dict[str, Any], MOST_PLAN), "slo_ms", above=0.0)
        return JSONResponse(await self._admin.revise(request.path_params["name"], slo_ms))

    async def hint(self, request: Request) -> Response:
        rate = _number(await document(request, dict[str, Any], MOST_PLAN), "rate")
        return JSONResponse(await self._admin.hint(request.path_params["name"], rate))

    async def add(self, request: Request) -> Response:
        return JSONResponse(await self._admin.add(request.path_params["name"]))

    async def remove(self, request: Request) -> Response:
        return JSONResponse(await self._admin.remove(request.path_params["name"]))


async def refuse_anonymous(_: Request) -> Response:
    """Where there is no token, nobody on a port is known."""
    raise RequestError(FORBIDDEN, HTTPStatus.FORBIDDEN)


def _number(document: Document, key: str, *, above: float = -1e-12) -> float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < _MOST:
        msg = f"{key} must be a number {'above 0' if above >= 0 else 'from 0 on'}, is {value!r}"
        raise RequestError(msg)
    return float(value)


_MOST = 1e12
