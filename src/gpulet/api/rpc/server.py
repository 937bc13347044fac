"""The gRPC port: the protocol's service and gRPC's health service on grpcio's asyncio server, as handlers of bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from gpulet.api.asking import LARGEST_DESCRIPTION
from gpulet.api.front import Front, as_request_error
from gpulet.api.heads import bears
from gpulet.api.info import Document, Info
from gpulet.api.rpc.calls import Infer, code_of
from gpulet.api.rpc.messages import HEALTH, MESSAGES
from gpulet.api.tls import Tls
from gpulet.errors import RequestError, Unusable

_SERVICE: Final = "/inference.GRPCInferenceService/"
_HEALTH: Final = "/grpc.health.v1.Health/"
_OPEN_TO_ALL: Final = (_HEALTH, _SERVICE + "ServerLive", _SERVICE + "ServerReady")
_HEAD_ROOM: Final = 1 << 16  # of a message beyond its tensors
_WATCH_S: Final = 1.0

Answer = Callable[[Any], Document | Awaitable[Document]]


class RpcServer:
    """Bound when it is made; raises `Unusable` when the port is taken. `port` is the real one."""

    def __init__(self, front: Front, info: Info, host: str, port: int, tls: Tls | None = None) -> None:
        self._server = grpc.aio.server(options=_options(front.limits.body), maximum_concurrent_rpcs=None)
        self._server.add_generic_rpc_handlers((_Service(front, info),))
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

    async def close(self) -> None:
        """Accept no more; end the calls that are open."""
        await self._server.stop(0)


def _options(body: int) -> list[tuple[str, int]]:
    """Another server on the same port would silently take half of the calls."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", body + _HEAD_ROOM),
        ("grpc.max_send_message_length", -1),
    ]


class _Service(grpc.GenericRpcHandler):
    """Methods by their paths."""

    def __init__(self, front: Front, info: Info) -> None:
        self._token = front.token
        infer = Infer(front)
        self._methods: dict[str, Any] = {
            _SERVICE + "ModelInfer": grpc.unary_unary_rpc_method_handler(infer.one),
            _SERVICE + "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer.stream),
            _HEALTH + "Check": _unary(HEALTH["HealthCheckRequest"], HEALTH["HealthCheckResponse"], _health(info)),
            _HEALTH + "Watch": grpc.unary_stream_rpc_method_handler(_watch(info)),
        }
        for name, answer in _answers(info).items():
            kind, asked = MESSAGES[f"{name}Response"], MESSAGES[f"{name}Request"]
            self._methods[_SERVICE + name] = _unary(asked, kind, answer)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call; unknown methods have none."""
        path = handler_call_details.method
        if self._token and not path.startswith(_OPEN_TO_ALL):
            metadata = dict(handler_call_details.invocation_metadata)
            if not bears(str(metadata.get("authorization", "")).encode(), self._token):
                return grpc.stream_stream_rpc_method_handler(_refuse)  # whatever it is, nothing of it is read
        return self._methods.get(path)


async def _refuse(_: AsyncIterator[bytes], context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is wanted")


def _unary(asked: Any, kind: Any, answer: Answer) -> Any:
    """A handler that answers a message with a document."""

    async def call(data: bytes, context: Any) -> bytes:
        try:
            document = answer(_parsed(asked, data))
            if isinstance(document, Awaitable):
                document = await document
        except Exception as error:
            refused = as_request_error(error).with_traceback(None)  # which would keep the message until a collection
            await context.abort(code_of(refused), str(refused))
            raise
        message: bytes = ParseDict(document, kind(), ignore_unknown_fields=True).SerializeToString()
        return message

    return grpc.unary_unary_rpc_method_handler(call)


def _parsed(asked: Any, data: bytes) -> Any:
    if len(data) > LARGEST_DESCRIPTION:
        msg = f"a {asked.DESCRIPTOR.name} is {LARGEST_DESCRIPTION} bytes at most, not {len(data)}"
        raise RequestError(msg)
    try:
        return asked.FromString(data)
    except DecodeError:
        msg = f"request is not valid: not a {asked.DESCRIPTOR.name}"
        raise RequestError(msg) from None


def _answers(info: Info) -> Mapping[str, Answer]:
    """What each method says, by its name; `ParseDict` makes its message."""
    return {
        "ServerLive": lambda _: {"live": True},
        "ServerReady": lambda _: {"ready": info.catalog.is_carved},
        "ServerMetadata": lambda _: info.server(),
        "ModelReady": lambda asked: {"ready": info.is_ready(asked.name, asked.version)},
        "ModelMetadata": lambda asked: info.model(asked.name, asked.version),
        "ModelConfig": lambda asked: {"config": info.config(asked.name, asked.version)},
        "ModelStatistics": lambda asked: info.statistics(asked.name, asked.version),
        "RepositoryIndex": lambda asked: {"models": info.index(only_ready=asked.ready)},
        "RepositoryModelLoad": lambda asked: _nothing(info.load(asked.model_name, dict(asked.parameters))),
        "RepositoryModelUnload": lambda asked: _nothing(info.unload(asked.model_name)),
        "SystemSharedMemoryStatus": lambda asked: _regions(info, asked.name),
        "SystemSharedMemoryRegister": lambda asked: _register(info, asked),
        "SystemSharedMemoryUnregister": lambda asked: _forget(info, asked.name),
        "CudaSharedMemoryStatus": lambda _: {},
        "CudaSharedMemoryUnregister": lambda _: {},
    }


async def _nothing(work: Awaitable[None]) -> Document:
    await work
    return {}


def _regions(info: Info, name: str) -> Document:
    return {
        "regions": {
            r.name: {"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.size}
            for r in info.regions.status(name)
        }
    }


def _register(info: Info, asked: Any) -> Document:
    info.regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
    return {}


def _forget(info: Info, name: str) -> Document:
    info.regions.forget(name)
    return {}


def _status(info: Info, name: str) -> str:
    """Of the server, or of a model by its name."""
    if name in {"", _SERVICE.strip("/")}:
        return "SERVING" if info.catalog.is_carved else "NOT_SERVING"
    if name not in info.catalog.models:
        return "SERVICE_UNKNOWN"
    return "SERVING" if info.catalog.is_ready(name) else "NOT_SERVING"


def _health(info: Info) -> Answer:
    def answer(asked: Any) -> Document:
        status = _status(info, asked.service)
        if status == "SERVICE_UNKNOWN":
            msg = f"unknown service {asked.service[:256]!r}"
            raise RequestError(msg, 404)
        return {"status": status}

    return answer


def _watch(info: Info) -> Callable[[bytes, Any], AsyncIterator[bytes]]:
    async def watch(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            name = HEALTH["HealthCheckRequest"].FromString(data).service  # type: ignore[attr-defined] # known at run time
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request is not valid: not a HealthCheckRequest")
            raise
        last = ""
        while True:
            status = _status(info, name)
            if status != last:
                last = status
                yield ParseDict({"status": status}, HEALTH["HealthCheckResponse"]()).SerializeToString()
            await asyncio.sleep(_WATCH_S)

    return watch
