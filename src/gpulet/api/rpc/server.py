"""The gRPC port on grpcio's asyncio server: the plane that is always there to fall back on (decision 16)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final

import grpc

from gpulet.api.front import Front, as_request_error
from gpulet.api.rpc.calls import MOST_STREAMED, Call, streamed
from gpulet.api.rpc.service import HEAD_ROOM, WATCH_S, Kind, Service, Unary
from gpulet.api.rpc.status import status_of
from gpulet.api.tls import Tls
from gpulet.errors import RequestError, Unusable
from gpulet.units import SECOND, Duration

_ENDLESS_S: Final = 365 * 86400.0
_GRACE_S: Final = 0.5
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class RpcServer:
    """Bound when it is made; raises `Unusable` when the port is taken. `port` is the real one."""

    def __init__(self, front: Front, service: Service, host: str, port: int, tls: Tls | None = None) -> None:
        self._server = grpc.aio.server(options=_options(front.limits.body), maximum_concurrent_rpcs=None)
        self._server.add_generic_rpc_handlers((_Handlers(service),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls:
                credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            msg = f"cannot listen on {host}:{port} (grpc_port): address in use, or not ours"
            raise Unusable(msg) from None

    async def open(self) -> None:
        """Accept calls."""
        await self._server.start()

    def leave(self) -> None:
        """Clients are told to go elsewhere by `close` alone: grpcio would refuse new calls at once."""

    async def close(self) -> None:
        """Accept no more; end the calls that are open, once what was answered in this very turn has left."""
        await self._server.stop(_GRACE_S)


def _options(body: int) -> list[tuple[str, int]]:
    """Another server on the same port would silently take half of the calls."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", body + HEAD_ROOM),
        ("grpc.max_send_message_length", -1),
    ]


class _Handlers(grpc.GenericRpcHandler):
    """Of the service's methods."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._handlers = {path: self._make(path, kind) for path, kind in service.kinds.items()}

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; unknown methods have none."""
        path = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata)
        if not self._service.allows(path, str(metadata.get("authorization", "")).encode()):
            return grpc.stream_stream_rpc_method_handler(_refuse)  # whatever it is, nothing of it is read
        return self._handlers.get(path)

    def _make(self, path: str, kind: Kind) -> Any:
        match kind:
            case Kind.INFER:
                return grpc.unary_unary_rpc_method_handler(self._infer)
            case Kind.INFER_STREAM:
                return grpc.stream_stream_rpc_method_handler(self._stream)
            case Kind.UNARY:
                return _unary(self._service.unary[path])
            case Kind.WATCH:
                return grpc.unary_stream_rpc_method_handler(self._watch)

    async def _infer(self, message: bytes, context: Any) -> bytes:
        """ModelInfer."""
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(call: Call) -> None:
            if not waiting.done():
                waiting.set_result(b"".join(call.parts))

        call = self._service.infer.begin(message, _limit(context), _traceparent(context), done)
        try:
            answer = await waiting
        finally:
            call.cancel()
        if call.error:
            await context.abort(_CODES[status_of(call.error)], str(call.error))
        return answer

    async def _stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ModelStreamInfer: answers in the order of their requests; a bad request does not end the stream."""
        calls: asyncio.Queue[tuple[Call, asyncio.Future[bytes]] | None] = asyncio.Queue(MOST_STREAMED)
        reading = asyncio.create_task(self._read(messages, context, calls))
        pair: tuple[Call, asyncio.Future[bytes]] | None = None
        try:
            while (pair := await calls.get()) is not None:
                yield await pair[1]
        finally:
            reading.cancel()
            for each in (pair, *(calls.get_nowait() for _ in range(calls.qsize()))):
                if each:
                    each[0].cancel()

    async def _read(self, messages: AsyncIterator[bytes], context: Any, calls: Any) -> None:
        pair: tuple[Call, asyncio.Future[bytes]] | None = None
        try:
            async for message in messages:
                pair = self._begin(message, context)
                await calls.put(pair)
                pair = None
        except grpc.RpcError:
            pass  # the client has gone: what has come is answered to nobody
        except Exception as error:  # noqa: BLE001 (see there; without an end the answers would wait for ever)
            as_request_error(error)
        finally:
            if pair:  # the answers have ended before there was room for it
                pair[0].cancel()
        await calls.put(None)

    def _begin(self, message: bytes, context: Any) -> "tuple[Call, asyncio.Future[bytes]]":
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(call: Call) -> None:
            if not waiting.done():
                waiting.set_result(streamed(call))

        return self._service.infer.begin(message, _limit(context), _traceparent(context), done), waiting

    async def _watch(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            status = self._service.watch(message)
        except RequestError as error:
            await context.abort(_CODES[status_of(error)], str(error))
            raise
        last = b"none"
        while True:
            now = status()
            if now != last:
                last = now
                yield now
            await asyncio.sleep(WATCH_S)


def _unary(answer: Unary) -> Any:
    async def call(message: bytes, context: Any) -> bytes:
        try:
            answered = answer(message)
            return await answered if isinstance(answered, Awaitable) else answered
        except Exception as error:
            refused = as_request_error(error).with_traceback(None)  # which would keep the message until a collection
            await context.abort(_CODES[status_of(refused)], str(refused))
            raise

    return grpc.unary_unary_rpc_method_handler(call)


async def _refuse(_: AsyncIterator[bytes], context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is wanted")


def _limit(context: Any) -> Duration:
    """How long a client still waits, as `Infer.begin` wants it."""
    remaining = context.time_remaining()
    if remaining is None or remaining >= _ENDLESS_S:
        return 0
    return round(remaining * SECOND) or -1


def _traceparent(context: Any) -> str:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"), "")
