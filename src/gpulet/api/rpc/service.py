"""The methods of both gRPC planes by their paths: the protocol's service and gRPC's health service, from bytes to bytes."""

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from gpulet.api.asking import LARGEST_DESCRIPTION
from gpulet.api.front import Front
from gpulet.api.heads import bears
from gpulet.api.info import Document, Info
from gpulet.api.rpc.calls import Infer
from gpulet.api.rpc.messages import HEALTH, MESSAGES
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

SERVICE: Final = "/inference.GRPCInferenceService/"
HEALTH_SERVICE: Final = "/grpc.health.v1.Health/"
WATCH_S: Final = 1.0
HEAD_ROOM: Final = 1 << 16
"""Bytes of a message beyond its tensors."""
_OPEN_TO_ALL: Final = (HEALTH_SERVICE, SERVICE + "ServerLive", SERVICE + "ServerReady")

_Answer = Callable[[Any], Document | Awaitable[Document]]
Unary: TypeAlias = Callable[[Buffer], bytes | Awaitable[bytes]]
"""A message for a message; raises `RequestError`."""


class Kind(Enum):
    """How a method is served."""

    INFER = auto()
    INFER_STREAM = auto()
    UNARY = auto()
    WATCH = auto()


class Service:
    """`kinds` has every method; those that are `Kind.UNARY` are in `unary`, for the others there is `infer` and `watch`."""

    def __init__(self, front: Front, info: Info) -> None:
        self.infer = Infer(front)
        self._info = info
        self._token = front.token
        self.unary: dict[str, Unary] = {
            HEALTH_SERVICE + "Check": _unary(
                HEALTH["HealthCheckRequest"], HEALTH["HealthCheckResponse"], partial(_health, info)
            )
        }
        for name, answer in _answers(info).items():
            self.unary[SERVICE + name] = _unary(MESSAGES[f"{name}Request"], MESSAGES[f"{name}Response"], answer)
        self.kinds = {
            SERVICE + "ModelInfer": Kind.INFER,
            SERVICE + "ModelStreamInfer": Kind.INFER_STREAM,
            HEALTH_SERVICE + "Watch": Kind.WATCH,
            **dict.fromkeys(self.unary, Kind.UNARY),
        }

    def allows(self, path: str, authorization: bytes) -> bool:
        """Whether a call with this header may be made; probes bear no token."""
        return not self._token or path.startswith(_OPEN_TO_ALL) or bears(authorization, self._token)

    def watch(self, message: Buffer) -> Callable[[], bytes]:
        """What tells how a server or a model is, as a HealthCheckResponse; raises `RequestError`."""
        name = _parsed(HEALTH["HealthCheckRequest"], message).service
        return lambda: _written({"status": _status(self._info, name)}, HEALTH["HealthCheckResponse"])


def _parsed(kind: Any, message: Buffer) -> Any:
    if len(message) > LARGEST_DESCRIPTION:
        msg = f"a {kind.DESCRIPTOR.name} is {LARGEST_DESCRIPTION} bytes at most, not {len(message)}"
        raise RequestError(msg)
    try:
        return kind.FromString(bytes(message))
    except DecodeError:
        msg = f"request is not valid: not a {kind.DESCRIPTOR.name}"
        raise RequestError(msg) from None


def _written(document: Document, kind: Any) -> bytes:
    message: bytes = ParseDict(document, kind(), ignore_unknown_fields=True).SerializeToString()
    return message


def _unary(asked: Any, kind: Any, answer: _Answer) -> Unary:
    """Answers a message with a document."""

    async def later(document: Awaitable[Document]) -> bytes:
        return _written(await document, kind)

    def call(message: Buffer) -> bytes | Awaitable[bytes]:
        document = answer(_parsed(asked, message))
        return later(document) if isinstance(document, Awaitable) else _written(document, kind)

    return call


def _answers(info: Info) -> Mapping[str, _Answer]:
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
    if name in {"", SERVICE.strip("/")}:
        return "SERVING" if info.catalog.is_carved else "NOT_SERVING"
    if name not in info.catalog.models:
        return "SERVICE_UNKNOWN"
    return "SERVING" if info.catalog.is_ready(name) else "NOT_SERVING"


def _health(info: Info, asked: Any) -> Document:
    status = _status(info, asked.service)
    if status == "SERVICE_UNKNOWN":
        msg = f"unknown service {asked.service[:256]!r}"
        raise RequestError(msg, 404)
    return {"status": status}
