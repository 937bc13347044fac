"""What is asked of a server and what its answers mean, without any I/O: both clients send these bytes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from gpulet.client.tensors import datatype, from_bytes, from_json, to_bytes
from gpulet.errors import BadInput, InvalidRequest, NotFound, Overloaded, ServerError
from gpulet.httpwire import error_message
from gpulet.units import NEVER, US, Duration

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Document: TypeAlias = Mapping[str, Any]

_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_JSON: Final = {"Content-Type": "application/json"}
_UNREADY: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response; the names of `headers` are looked up without their case, as httpx has them."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def check(self) -> "Answer":
        """Itself where it is a result; raises the `ServerError` that it is where not."""
        if HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES:
            return self
        message = error_message(self.body) or f"HTTP status {self.status}"
        match self.status:
            case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
                raise Overloaded(self.status, message, self.headers.get("retry-after", ""))
            case HTTPStatus.NOT_FOUND:
                raise NotFound(self.status, message)
            case status if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise InvalidRequest(status, message)
            case _:
                raise ServerError(self.status, message)

    def document(self) -> Any:
        """The JSON of a result."""
        try:
            return orjson.loads(self.check().body or b"{}")
        except orjson.JSONDecodeError as error:
            msg = f"the answer is not JSON: {error}"
            raise ServerError(self.status, msg) from None

    def is_yes(self) -> bool:
        """What a probe says; raises `ServerError` where the answer is not about readiness."""
        return self.status not in _UNREADY and self.check() is self


@dataclass(frozen=True, slots=True)
class Infer:
    """An infer request; `left` at its `call` is the time it has, `NEVER` where nobody limits it."""

    model: str
    inputs: Arrays
    outputs: Sequence[str] | None = None
    version: str = ""
    priority: int = 0
    request_id: str = ""

    def call(self, left: Duration = NEVER) -> Call:
        """Its bytes, all tensors binary; raises `BadInput` for arrays that the protocol cannot carry."""
        arrays = {name: np.asarray(array) for name, array in self.inputs.items()}
        tensors = [to_bytes(array) for array in arrays.values()]
        header = orjson.dumps(
            {
                **({"id": self.request_id} if self.request_id else {}),
                "inputs": [_described(*item, len(t)) for item, t in zip(arrays.items(), tensors, strict=True)],
                **({"outputs": [_wanted(name) for name in self.outputs]} if self.outputs else {}),
                "parameters": self._parameters(left),
            }
        )
        headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(header))}
        path = f"{model_path(self.model, self.version)}/infer"
        return Call("POST", path, b"".join([header, *tensors]), headers)

    def _parameters(self, left: Duration) -> dict[str, int | bool]:
        parameters: dict[str, int | bool] = {} if self.outputs else {"binary_data_output": True}
        if self.priority:
            parameters["priority"] = self.priority
        if left != NEVER:
            parameters["timeout"] = ceil(left / US)
        return parameters


def _described(name: str, array: NDArray[Any], size: int) -> dict[str, Any]:
    doc = {"name": name, "datatype": datatype(array), "shape": array.shape}
    return {**doc, "parameters": {"binary_data_size": size}}


def _wanted(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": {"binary_data": True}}


def results(answer: Answer) -> Arrays:
    """The outputs of an answered infer request, read-only; raises `ServerError` for any other answer."""
    length = answer.check().headers.get(_JSON_LENGTH.lower())
    try:
        end = len(answer.body) if length is None else int(length)
        outputs = orjson.loads(answer.body[:end])["outputs"]
        return _read(outputs, memoryview(answer.body)[end:])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, BadInput) as error:
        msg = f"the answer is no infer response: {error!r}"
        raise ServerError(answer.status, msg) from None


def _read(outputs: Sequence[Document], binary: memoryview) -> Arrays:
    arrays: dict[str, NDArray[Any]] = {}
    place = 0
    for doc in outputs:
        shape = tuple(doc["shape"])
        size = (doc.get("parameters") or {}).get("binary_data_size")
        if size is None:
            arrays[doc["name"]] = from_json(doc["datatype"], shape, doc["data"])
            continue
        arrays[doc["name"]] = from_bytes(doc["datatype"], shape, binary[place : place + size])
        place += size
    if place != len(binary):
        msg = f"{place} bytes are named, {len(binary)} follow"
        raise ValueError(msg)
    return arrays


def only_input(metadata: Document) -> str:
    """The name of a model's one input; raises `BadInput` where it has several."""
    names = [tensor["name"] for tensor in metadata["inputs"]]
    if len(names) != 1:
        msg = f"model {metadata['name']} has inputs {', '.join(names)}: give a mapping by name"
        raise BadInput(msg)
    return str(names[0])


def get(path: str) -> Call:
    """A question."""
    return Call("GET", path)


def post(path: str) -> Call:
    """An order without parameters."""
    return Call("POST", path, b"{}", _JSON)


def model_path(model: str, version: str = "") -> str:
    """Where a model, or one version of it, is."""
    name = quote(model, safe="")
    return f"/v2/models/{name}/versions/{quote(version, safe='')}" if version else f"/v2/models/{name}"


def ready_path(model: str | None) -> str:
    """Whom to ask whether a model is ready, or the server."""
    return "/v2/health/ready" if model is None else f"{model_path(model)}/ready"


def statistics_path(model: str, version: str) -> str:
    """Where the statistics of a model are, or of all."""
    return f"{model_path(model, version)}/stats" if model else "/v2/models/stats"


def repository_path(model: str, verb: str) -> str:
    """Where a model is loaded and unloaded."""
    return f"/v2/repository/models/{quote(model, safe='')}/{verb}"


def base_url(url: str) -> str:
    """A server's URL; `HOST:PORT` is one over HTTP. Raises `BadInput`."""
    full = url if "://" in url else f"http://{url}"
    if not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", full):
        msg = f"{url!r}: give HOST:PORT, http://HOST:PORT or https://HOST:PORT"
        raise BadInput(msg)
    return full


def authorization(token: str | None) -> dict[str, str]:
    """The header of a bearer token."""
    return {"Authorization": f"Bearer {token}"} if token else {}
