"""Bodies of requests that are not infer, read up to a bound, and what errors become."""

from http import HTTPStatus
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gpulet.api.asking import LARGEST_DESCRIPTION
from gpulet.errors import RequestError

_Kind = TypeVar("_Kind")


async def body_of(request: Request, most: int = LARGEST_DESCRIPTION) -> bytes:
    """All of it; raises `RequestError` for more than so many bytes."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            msg = f"body is larger than {most} bytes"
            raise RequestError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return bytes(body)


async def document(request: Request, kind: type[_Kind], most: int = LARGEST_DESCRIPTION) -> _Kind:
    """The body as what it should be, nothing where there is none; raises `RequestError`."""
    body = await body_of(request, most)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        msg = f"request is not valid: {error}"
        raise RequestError(msg) from None


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse({"error": str(error)}, error.status)


async def _error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _crash(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, HTTPStatus.INTERNAL_SERVER_ERROR)


async def _gone(_: Request, __: Exception) -> Response:
    """The client left before it had sent all: nobody reads this."""
    return Response()


HANDLERS = {HTTPException: _error, RequestError: _refuse, ClientDisconnect: _gone, Exception: _crash}
