"""What all connections of all protocols share: the driver, the catalog, who reads requests for which model."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from gpulet.api.catalog import Catalog, Served
from gpulet.api.forms import Checker, Form
from gpulet.api.gathered import GatheredReader, GatheredRpcReader
from gpulet.api.heads import Head
from gpulet.api.infer import Reader
from gpulet.api.orca import LoadReport
from gpulet.api.regions import Regions
from gpulet.api.rpc.infer import RpcReader
from gpulet.core.messages import Reason, RequestId
from gpulet.drivers.gather import Client
from gpulet.drivers.live import Live
from gpulet.errors import RequestError
from gpulet.executors.base import Signature
from gpulet.logs import tell
from gpulet.units import Duration

_PACKERS: Final = 2  # each holds a whole body, and what it unpacks to


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Bounds of a connection, in bytes; `overload_status` answers what is predicted late or finds a full queue."""

    body: int
    head: int
    connections: int
    overload_status: int


@dataclass(frozen=True, slots=True)
class Readers:
    """Of one model, for each protocol; they hold as long as its signature and version do."""

    signature: Signature
    version: str
    http: Reader
    rpc: RpcReader


class Flushable(Protocol):
    """A connection with answers to write."""

    def flush(self) -> None:
        """Write those whose turn has come."""
        ...


class Front:
    """Takes checked requests to the driver; who bears the `token` may ask, or everybody where there is none."""

    def __init__(self, live: Live, catalog: Catalog, limits: ApiLimits, regions: Regions, token: str = "") -> None:
        self.live = live
        self.catalog = catalog
        self.limits = limits
        self.regions = regions
        self.token = token
        self.heads: dict[bytes, Head] = {}
        self.connections = 0
        self.is_leaving = False
        self.packing = ThreadPoolExecutor(_PACKERS, "packing")
        self._readers: dict[str, Readers] = {}
        self._answered: list[Flushable] = []
        self._load = LoadReport(live.metrics, live.timer)

    def flush_soon(self, connection: "Flushable") -> None:
        """Write this connection's answers once this turn's commands are carried out.

        A write to a socket costs as much as all of the core; the next batch need not wait for the answers of the last.
        """
        if not self._answered:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answered.append(connection)

    def _flush(self) -> None:
        answered, self._answered = self._answered, []
        for connection in dict.fromkeys(answered):
            connection.flush()

    def load_report(self, form: str) -> str:
        """How busy this server is, as ORCA's header wants it: `text` or `json`."""
        return self._load.report(form)

    def readers(self, model: str, version: str) -> Readers:
        """Who reads requests for this model; raises `RequestError` where it is unknown or not ready."""
        served = self.catalog.find(model, version)
        signature = self.catalog.signature(model)
        readers = self._readers.get(model)
        if readers is None or readers.signature is not signature or readers.version != served.version:
            readers = self._readers[model] = self._make(model, served, signature)
        return readers

    def _make(self, name: str, served: Served, signature: Signature) -> Readers:
        version, labels = served.version, served.labels
        checker = Checker(name, signature, served.model.max_batch, served.shapes, pads=served.pads)
        if name in self.catalog.applications:
            return Readers(signature, version, GatheredReader(version, checker), GatheredRpcReader(version, checker))
        return Readers(signature, version, Reader(version, checker, labels), RpcReader(version, checker, labels))

    def submit(self, client: Client, model: str, form: Form, limit: Duration) -> RequestId:
        """Hand a request to the driver: one deadline from here to the kernel.

        It is the model's SLO, or what is nearer: the request's own timeout, or the transport's `limit` (0: none).
        """
        slo = self.catalog.models[model].model.slo
        own = min(form.timeout or slo, limit if limit > 0 else slo, slo)
        deadline = self.live.timer.now() + own
        return self.live.submit(client, model, deadline, shape=form.shape, priority=form.priority, hard=own < slo)

    def status(self, reason: Reason) -> int:
        """The HTTP status of a refusal (Triton's mapping; overload is 429 unless 503 is asked for)."""
        match reason:
            case Reason.UNKNOWN_MODEL:
                return HTTPStatus.NOT_FOUND
            case Reason.TOO_LARGE | Reason.CANCELLED | Reason.ABANDONED:
                return HTTPStatus.BAD_REQUEST
            case Reason.QUEUE_FULL | Reason.LATE:
                return self.limits.overload_status
            case Reason.EXPIRED | Reason.STOPPED | Reason.WORKER_LOST | Reason.NOT_LOADED:
                return HTTPStatus.SERVICE_UNAVAILABLE
            case Reason.RUN_FAILED:
                return HTTPStatus.INTERNAL_SERVER_ERROR


def as_request_error(error: Exception) -> RequestError:
    """What goes wrong with one request is its own answer: anything else would take its neighbours along, or hang."""
    if isinstance(error, RequestError):
        return error
    tell("request_failed", error=repr(error)[:1000])
    return RequestError("internal error", HTTPStatus.INTERNAL_SERVER_ERROR)


def refusal(reason: Reason) -> str:
    """What a refused client is told."""
    return f"request was not served: {reason}"
