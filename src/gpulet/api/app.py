"""Everything of the protocol that is not infer: health, metadata, readiness; and the metrics app."""

import re
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpulet import __version__
from gpulet.api.catalog import Catalog, Served
from gpulet.api.exposition import expose
from gpulet.executors.base import Tensor

EXTENSIONS = ("binary_tensor_data", "parameters")
_VERSION = re.compile(r"[0-9]+")


def make_app(catalog: Catalog) -> Starlette:
    """The ASGI app of the main port."""
    pages = _Pages(catalog)
    version = "/v2/models/{name}/versions/{version}"
    routes = [
        Route("/v2", pages.server),
        Route("/v2/", pages.server),
        Route("/v2/health/live", pages.live),
        Route("/v2/health/ready", pages.ready),
        Route("/v2/models", pages.models),
        Route("/v2/models/{name}", pages.model),
        Route("/v2/models/{name}/ready", pages.model_ready),
        Route("/v2/models/{name}/infer", pages.infer, methods=["POST"]),
        Route(version, pages.model),
        Route(version + "/ready", pages.model_ready),
        Route(version + "/infer", pages.infer, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _error, Exception: _crash})


def make_metrics_app(registry: CollectorRegistry) -> Starlette:
    """The ASGI app of the metrics port."""

    async def metrics(request: Request) -> Response:
        text, kind = await expose(registry, request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    return Starlette(routes=[Route("/metrics", metrics)], exception_handlers={HTTPException: _error})


class _Pages:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": "gpulet", "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Only once the plan is carved, loaded, verified and warm."""
        is_ready = self._catalog.is_carved
        return JSONResponse({"ready": is_ready}, HTTPStatus.OK if is_ready else HTTPStatus.BAD_REQUEST)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": list(self._catalog.models)})

    async def model(self, request: Request) -> Response:
        name, served = self._find(request)
        signature = self._catalog.signatures.get(name)
        if signature is None:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, f"model {name} is still loading")
        return JSONResponse(
            {
                "name": name,
                "versions": [served.version],
                "platform": signature.platform,
                "inputs": [_tensor(t) for t in signature.inputs],
                "outputs": [_tensor(t) for t in signature.outputs],
                "parameters": {"gpulet.slo_ms": served.model.slo / 1e6, "gpulet.max_batch": served.model.max_batch},
            }
        )

    async def model_ready(self, request: Request) -> Response:
        name, _ = self._find(request)
        is_ready = self._catalog.is_ready(name)
        return JSONResponse({"name": name, "ready": is_ready}, HTTPStatus.OK if is_ready else HTTPStatus.BAD_REQUEST)

    async def infer(self, request: Request) -> Response:
        """Infer comes here on a connection that sent a chunked request: sizes cannot be bounded beforehand there."""
        headers = {"connection": "close"}
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "an infer request needs a Content-Length", headers)

    def _find(self, request: Request) -> tuple[str, Served]:
        name, version = request.path_params["name"], request.path_params.get("version", "")
        served = self._catalog.models.get(name)
        if name in self._catalog.refused:
            detail = f"model {name} could not be loaded: {self._catalog.refused[name]}"
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        if served is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"unknown model {name!r}")
        if version and not _VERSION.fullmatch(version):
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"version must be a whole number, is {version!r}")
        if version and version != served.version:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"model {name} has version {served.version}, not {version}")
        return name, served


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _crash(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, HTTPStatus.INTERNAL_SERVER_ERROR)
