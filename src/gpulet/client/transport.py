"""What both clients ask of httpx, and its errors as ours."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from gpulet.client.calls import authorization, base_url
from gpulet.client.retry import Attempts
from gpulet.errors import ServerError, Unreachable
from gpulet.units import NEVER, SECOND, Duration

_CONNECT_S: Final = 10.0


def options(url: str, token: str | None, verify: bool | ssl.SSLContext) -> dict[str, Any]:
    """What an httpx client is made with."""
    # httpx would accept gzip, and servers then spend more on compressing tensors than on most models
    headers = {"Accept-Encoding": "identity", **authorization(token)}
    return {"base_url": base_url(url), "headers": headers, "verify": verify}


def timeout(left: Duration) -> httpx.Timeout:
    """Of every operation of one attempt; who names no deadline waits for an answer for good, for a connection 10 s."""
    return httpx.Timeout(None, connect=_CONNECT_S) if left == NEVER else httpx.Timeout(left / SECOND)


@contextmanager
def translated(attempts: Attempts, left: Duration) -> Iterator[None]:
    """Raises what httpx and the clock raise as `ServerError`s; `Unreachable` only while nothing was sent."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        if left != NEVER:
            raise attempts.late() from error
        msg = f"no connection within {_CONNECT_S:.0f} s"
        raise Unreachable(0, msg) from error
    except httpx.ConnectError as error:
        raise Unreachable(0, f"no connection: {error}") from error
    except httpx.RequestError as error:
        raise ServerError(0, f"connection lost: {str(error) or type(error).__name__}") from error
