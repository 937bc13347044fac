"""gRPC's status codes, and which a refusal has."""

from enum import IntEnum
from http import HTTPStatus
from typing import Final

from gpulet.errors import RequestError


class Status(IntEnum):
    """Of a call (grpc/grpc: doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_OF_HTTP: Final = {
    HTTPStatus.NOT_FOUND: Status.NOT_FOUND,
    HTTPStatus.UNAUTHORIZED: Status.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: Status.PERMISSION_DENIED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Status.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: Status.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: Status.UNAVAILABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR: Status.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: Status.UNIMPLEMENTED,
}


class RpcError(RequestError):
    """A refusal that has a status of gRPC's own."""

    def __init__(self, message: str, code: Status) -> None:
        super().__init__(message)
        self.code = code


def status_of(error: RequestError) -> Status:
    """Of a refusal."""
    if isinstance(error, RpcError):
        return error.code
    return _OF_HTTP.get(HTTPStatus(error.status), Status.INVALID_ARGUMENT)
