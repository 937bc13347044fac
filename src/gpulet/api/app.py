"""Everything of the protocol over HTTP that is not infer, and the metrics app."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gpulet.api.admin import refuse_anonymous
from gpulet.api.bodies import HANDLERS, document
from gpulet.api.exposition import expose
from gpulet.api.heads import bears
from gpulet.api.info import Info

_OPEN_TO_ALL = ("/v2/health/live", "/v2/health/ready")
"""Probes bear no token."""


class _RegisterDoc(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _IndexDoc(msgspec.Struct):
    ready: bool = False


def make_app(info: Info, token: str = "", admin: Sequence[Route] = ()) -> Starlette:
    """The ASGI app of the main port. Admin's calls are for those who bear the token, so not where there is none."""
    pages = _Pages(info)
    get: dict[str, _Page] = {
        "/v2": pages.server,
        "/v2/": pages.server,
        "/v2/health/live": pages.live,
        "/v2/health/ready": pages.ready,
        "/v2/models": pages.models,
        "/v2/models/stats": pages.statistics,
        "/v2/systemsharedmemory/status": pages.regions,
        "/v2/systemsharedmemory/region/{region}/status": pages.regions,
        "/v2/cudasharedmemory/status": pages.no_regions,
        "/v2/cudasharedmemory/region/{region}/status": pages.no_regions,
    }
    post: dict[str, _Page] = {
        "/v2/repository/index": pages.index,
        "/v2/repository/models/{name}/load": pages.load,
        "/v2/repository/models/{name}/unload": pages.unload,
        "/v2/systemsharedmemory/region/{region}/register": pages.register,
        "/v2/systemsharedmemory/region/{region}/unregister": pages.unregister,
        "/v2/systemsharedmemory/unregister": pages.unregister,
        "/v2/cudasharedmemory/region/{region}/unregister": pages.nothing,
        "/v2/cudasharedmemory/unregister": pages.nothing,
        "/v2/cudasharedmemory/region/{region}/register": pages.no_cuda,
    }
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        get |= {model: pages.model, f"{model}/ready": pages.model_ready, f"{model}/config": pages.config}
        get |= {f"{model}/stats": pages.statistics}
        post |= {f"{model}/infer": pages.infer}
    routes = [Route(path, page) for path, page in get.items()]
    routes += [Route(path, page, methods=["POST"]) for path, page in post.items()]
    routes += admin if token else [Route("/gpulet/{rest:path}", refuse_anonymous, methods=["GET", "POST"])]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[Middleware(_Guard, token=token)])
    app.router.redirect_slashes = False  # it would redirect to whatever host a request names
    return app


def make_metrics_app(registry: CollectorRegistry, token: str = "") -> Starlette:
    """The ASGI app of the metrics port."""

    async def metrics(request: Request) -> Response:
        text, kind = await expose(registry, request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    guard = Middleware(_Guard, token=token)
    return Starlette(routes=[Route("/metrics", metrics)], exception_handlers=HANDLERS, middleware=[guard])


class _Guard:
    """Asks for the token, where there is one."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.strip()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope.get("path") in _OPEN_TO_ALL or bears(headers.get(b"authorization", b""), self._token):
            await self._app(scope, receive, send)
            return
        body = {"error": "a bearer token is wanted"}
        answer = JSONResponse(body, HTTPStatus.UNAUTHORIZED, {"www-authenticate": "Bearer"})
        await answer(scope, receive, send)


_Page = Callable[[Request], Awaitable[Response]]


class _Pages:
    def __init__(self, info: Info) -> None:
        self._info = info

    async def server(self, request: Request) -> Response:
        return JSONResponse(self._info.server())

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Only once the plan is carved, loaded, verified and warm."""
        return _ready({}, self._info.catalog.is_carved)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": list(self._info.catalog.models)})

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._info.model(*_named(request)))

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        return _ready({"name": name}, self._info.is_ready(name, version))

    async def config(self, request: Request) -> Response:
        return JSONResponse(self._info.config(*_named(request)))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse(self._info.statistics(*_named(request)))

    async def index(self, request: Request) -> Response:
        asked = await document(request, _IndexDoc)
        return JSONResponse(self._info.index(only_ready=asked.ready))

    async def load(self, request: Request) -> Response:
        parameters = (await document(request, dict[str, Any])).get("parameters", {})
        await self._info.load(request.path_params["name"], parameters if isinstance(parameters, dict) else {})
        return Response()

    async def unload(self, request: Request) -> Response:
        await self._info.unload(request.path_params["name"])
        return Response()

    async def regions(self, request: Request) -> Response:
        regions = self._info.regions.status(request.path_params.get("region", ""))
        return JSONResponse([{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.size} for r in regions])

    async def register(self, request: Request) -> Response:
        asked = await document(request, _RegisterDoc)
        self._info.regions.register(request.path_params["region"], asked.key, asked.offset, asked.byte_size)
        return Response()

    async def unregister(self, request: Request) -> Response:
        self._info.regions.forget(request.path_params.get("region", ""))
        return Response()

    async def no_regions(self, request: Request) -> Response:
        """Clients ask for the state of CUDA's regions beside the system's: there are none."""
        return JSONResponse([])

    async def nothing(self, request: Request) -> Response:
        """As there are none, all are unregistered."""
        return Response()

    async def no_cuda(self, request: Request) -> Response:
        raise HTTPException(HTTPStatus.NOT_IMPLEMENTED, "CUDA shared memory is not supported")

    async def infer(self, request: Request) -> Response:
        """Infer comes here on a connection that sent a chunked request: sizes cannot be bounded beforehand there."""
        headers = {"connection": "close"}
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "an infer request needs a Content-Length", headers)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _ready(head: dict[str, Any], is_ready: bool) -> Response:
    return JSONResponse({**head, "ready": is_ready}, HTTPStatus.OK if is_ready else HTTPStatus.BAD_REQUEST)
