"""The fleet file: TOML, read once, every key with its default and meaning.

Unknown keys, wrong types and impossible values are refused with file, line, key, value and what is allowed.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from gpulet.configcontrol import ControlSection
from gpulet.configfaults import Location, told
from gpulet.configsection import Section
from gpulet.errors import ConfigError

_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""As NVML gives it: in lower case, compared as it is."""
_SHAPE = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*")


class FleetSection(Section):
    """How the fleet is scheduled: `[fleet]`."""

    system: str = Field("gpulet", description="a name of `gpulet systems`, or package.module:NAME for your own")
    planner: str = Field("", description="take the planner of this system instead")
    dispatcher: str = Field("", description="take the dispatcher of this system instead")


class DeviceSection(Section):
    """Devices of one kind: `[[devices]]`."""

    kind: str = Field(
        description="cpu, rtx2080ti, v100, t4, a30, a100-40gb, a100-80gb, h100-80gb, h100-94gb, h100-96gb, h200-141gb, "
        "b200, gb200, rtxpro6000"
    )
    count: int = Field(1, gt=0, le=1024, description="how many of them")
    cores: int = Field(0, ge=0, le=1024, description="kind cpu: how many cores; 0: all that this process may use")
    mechanism: Literal["", "whole", "mps", "mig", "green", "cpu"] = Field(
        "", description="how it is cut; left out: cpu for kind cpu, mps for GPUs"
    )
    executor: Literal["", "simulated", "cpu", "rehearsal"] = Field(
        "",
        description="who runs batches; left out: the real one; simulated: a clock; rehearsal: GPU workers without a GPU, "
        "models run on the CPU and shares are only counted",
    )
    mig_sms: dict[str, Annotated[int, Field(gt=0)]] = Field(
        default_factory=dict,
        description='mechanism mig: SMs by MIG type as the device reports them, {"1g.23gb" = 18}; left out: on record',
    )
    profile: str = Field("", description="a profile table, relative to this file; left out: the profile store")
    fit: Literal["", "half", "single"] = Field(
        "",
        description="fill a table of few points by the analytic model, fitted to them, where points held out accept it; the "
        "precision that was measured",
    )
    contention: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="mechanism whole: extra slowdown by each overlapping run"
    )
    resizes: bool = Field(
        False,
        description="mechanism mps, emulated: processes of every size stand ready, so that each run may have its own size",
    )


class ModelSection(Section):
    """A model to serve: `[[models]]`."""

    name: str = Field(min_length=1, description="as in requests, the repository and the profile")
    slo_ms: float = Field(
        0.0, gt=0, allow_inf_nan=False, description="time allowed from arrival to answer; left out: from the profile"
    )
    rate: float = Field(
        0.0,
        gt=0,
        allow_inf_nan=False,
        description="requests/s the plan is made for; left out: an equal share of the fleet",
    )
    shapes: list[str] = Field(
        default_factory=list,
        description="models with free dimensions: the ones that are served, such as 224x224; each is profiled; one size for "
        "dimensions of one name",
    )
    pad: bool = Field(
        False,
        description="shapes are buckets: smaller requests are padded with zeros to the smallest that holds them; "
        "the model must mask",
    )
    max_batch: int = Field(0, gt=0, description="most rows of a batch; left out: the largest profiled, at most 32")
    max_queue_delay_us: int = Field(
        0,
        ge=0,
        description="how long a request may wait for its batch to fill while a gpulet is idle, as in Triton; dispatchers with "
        "rules of their own (elsa, fifs, horizon) ignore it",
    )
    memory_mib: float = Field(
        0.0, gt=0, allow_inf_nan=False, description="device memory of a replica; left out: not counted"
    )
    input_kib: float = Field(
        0.0, gt=0, allow_inf_nan=False, description="input of one row, for network budgets; left out: not counted"
    )
    rows: str = Field("", description="rows of its requests, as under [batch_distribution]; left out: those")
    pin: bool = Field(False, description="never unloaded to make room, nor for being idle")
    importance: int = Field(
        0, ge=0, le=100, description="where no plan holds all demand: models of a higher number get less first"
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="among models of one importance: twice the weight gives half as much",
    )
    floor: float = Field(0.1, ge=0, le=1, description="the share of its demand that is planned for in any case")

    @field_validator("pad")
    @classmethod
    def _check_buckets(cls, pad: bool, info: ValidationInfo) -> bool:
        """`shapes` stand before `pad`, so they are known here unless they were refused."""
        shapes = info.data.get("shapes")
        if pad and shapes == []:
            msg = "there are no buckets; list them under shapes"
            raise ValueError(msg)
        for shape in (shapes or []) if pad else []:
            if not _SHAPE.fullmatch(shape):
                msg = f"bucket {shape!r} is no size, such as 128 or 224x224"
                raise ValueError(msg)
        return pad


class StageSection(Section):
    """One model's part of an application: `[[applications.stages]]`."""

    model: str = Field(min_length=1, description="the model it runs; it needs no entry under models")
    name: str = Field("", description="left out: the model's name; each name once in an application")
    after: list[str] = Field(default_factory=list, description="the stages it waits for; several: it joins them")
    fan_out: float = Field(
        1.0, le=1000, allow_inf_nan=False, description="requests for each finished one of its parent; may be fractional"
    )
    budget_ms: float = Field(
        0.0, gt=0, allow_inf_nan=False, description="its part of the SLO; split nexus chooses it instead"
    )


class ApplicationSection(Section):
    """Several models that answer one request: `[[applications]]`."""

    name: str = Field(min_length=1, description="as in requests; without stages: the built-in game or traffic")
    rate: float = Field(gt=0, allow_inf_nan=False, description="application requests/s the plan is made for")
    slo_ms: float = Field(
        0.0, gt=0, allow_inf_nan=False, description="time allowed to the last stage's end; a built-in has its own"
    )
    split: Literal["", "nexus", "fixed"] = Field(
        "",
        description="who splits the SLO: nexus computes budgets, fixed takes budget_ms; left out: fixed with budgets",
    )
    stages: list[StageSection] = Field(default_factory=list, description="in any order; `after` says which waits")


class MarginsSection(Section):
    """Safety margins of plans: `[margins]`."""

    latency_ratio: float = Field(1.0, ge=1, allow_inf_nan=False, description="every profiled latency times this")
    statistic: Literal["mean", "p95", "p99"] = Field("mean", description="which measured latency plans count on")


class InterferenceSection(Section):
    """How neighbours slow each other: `[interference]`."""

    model: str = Field(
        "", description="what `gpulet interference fit` wrote, relative to this file; left out: nobody slows anybody"
    )


class BatchDistributionSection(Section):
    """How many rows requests bring: `[batch_distribution]`."""

    rows: str = Field("1", description="N, lognormal:MU,SIGMA[,LARGEST] (MU a number or ln4), or weights:W1,W2,...")


class MigSection(Section):
    """MIG instances: `[mig]`."""

    slices: int = Field(0, gt=0, description="compute slices that systems which count instances may use; left out: all")


class LimitsSection(Section):
    """Bounds on what is taken in: `[limits]`."""

    max_queue: int = Field(4096, gt=0, description="requests that may wait per model")
    max_body_mib: float = Field(64.0, gt=0, le=2048, allow_inf_nan=False, description="largest request body")
    max_header_kib: int = Field(16, gt=0, le=1024, description="largest request head")
    max_connections: int = Field(4096, gt=0, description="open connections, HTTP and gRPC")
    memory_mib: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="memory of all loaded models, as workers measure it; 0: not bounded"
    )


class ServerSection(Section):
    """The server: `[server]`."""

    repository: str | list[str] = Field("", description="model repository, or several, relative to this file")
    model_control: Literal["none", "explicit", "poll"] = Field(
        "none", description="none: all is loaded at the start; explicit: load_models; poll: as the repository changes"
    )
    load_models: list[str] = Field([], description='model_control explicit: models to load at the start; "*": all')
    poll_s: float = Field(15.0, gt=0, le=86400, description="model_control poll: seconds between looks at it")
    host: str = Field("127.0.0.1", description="address to bind; loopback by default")
    http_port: int = Field(8000, ge=0, le=65535, description="OIP v2 over HTTP; 0: any free port")
    grpc: bool = Field(True, description="serve OIP v2 over gRPC as well")
    grpc_port: int = Field(8001, ge=0, le=65535, description="OIP v2 over gRPC; 0: any free port")
    grpc_plane: Literal["own", "grpcio"] = Field(
        "own", description="who speaks gRPC: own, at a fraction of the CPU; grpcio, Google's server, to fall back on"
    )
    metrics_port: int = Field(8002, ge=0, le=65535, description="/metrics; 0: any free port")
    overload_status: Literal[429, 503] = Field(429, description="HTTP status when predicted late or the queue is full")
    drain_s: float = Field(10.0, ge=0, le=3600, allow_inf_nan=False, description="time to finish work on SIGTERM")
    idle_unload_s: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="unload a model after so long without a request for it; 0: never"
    )
    load_wait_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="longest wait of a request for a model that was unloaded so",
    )
    standby_mib: float = Field(
        256.0,
        ge=0,
        allow_inf_nan=False,
        description="models that the worker which stands by may have loaded; not where [limits] bounds memory; workers of cores",
    )
    journal: str = Field("", description="write every step to this file, for `gpulet replay`")
    token_file: str = Field(
        "", description="a file whose only line is the bearer token that clients must send; relative to this file"
    )
    admin_socket: str = Field(
        "",
        description="Unix socket for `gpulet control`, relative to this file; left out: in the temporary folder, by port",
    )
    tls_certificate: str = Field("", description="certificate chain, PEM, for HTTP and gRPC; relative to this file")
    tls_key: str = Field("", description="its private key, PEM")
    allow_client_shm: bool = Field(False, description="clients on this machine may register system shared memory")
    insecure: bool = Field(
        False, description="bind an address beyond loopback without a token, or with what only loopback should offer"
    )
    carve_mig: list[str] = Field(
        default_factory=list,
        description="GPUs, by UUID as nvidia-smi -L prints it, where MIG instances may be made and our own ended; "
        "left out: none is touched",
    )
    log_format: Literal["text", "json"] = Field("text", description="one structured line per event")

    @field_validator("carve_mig")
    @classmethod
    def _check_uuids(cls, uuids: list[str]) -> list[str]:
        for uuid in uuids:
            if not _UUID.fullmatch(uuid):
                msg = f"{uuid!r} is not the UUID of a GPU, GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
                raise ValueError(msg)
            if uuids.count(uuid) > 1:
                msg = f"{uuid} is named {uuids.count(uuid)} times"
                raise ValueError(msg)
        return uuids


class TracingSection(Section):
    """OpenTelemetry spans of requests, with the extra otel: `[tracing]`."""

    endpoint: str = Field("", description="OTLP over gRPC, http://HOST:4317; left out: nothing is traced")
    sample: float = Field(0.01, ge=0, le=1, description="share of requests traced whose client sends no traceparent")


class FleetFile(Section):
    """A whole fleet file."""

    fleet: FleetSection = FleetSection()  # type: ignore[call-arg] # pydantic's plugin is not used; all have defaults
    devices: list[DeviceSection] = Field(min_length=1)
    models: list[ModelSection] = Field(default_factory=list)
    applications: list[ApplicationSection] = Field(default_factory=list)
    margins: MarginsSection = MarginsSection()  # type: ignore[call-arg] # as above
    interference: InterferenceSection = InterferenceSection()  # type: ignore[call-arg] # as above
    batch_distribution: BatchDistributionSection = BatchDistributionSection()  # type: ignore[call-arg] # as above
    mig: MigSection = MigSection()  # type: ignore[call-arg] # as above
    limits: LimitsSection = LimitsSection()  # type: ignore[call-arg] # as above
    server: ServerSection = ServerSection()  # type: ignore[call-arg] # as above
    tracing: TracingSection = TracingSection()  # type: ignore[call-arg] # as above
    control: ControlSection = ControlSection()  # type: ignore[call-arg] # as above


def read_fleet_file(path: Path) -> FleetFile:
    """Read and check a fleet file; raises `ConfigError` that names file, line, key, value and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise ConfigError(msg) from None
    return parse_fleet_file(text, str(path))


def parse_fleet_file(text: str, source: str) -> FleetFile:
    """The same from text."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{source}: not TOML: {error}"
        raise ConfigError(msg) from None
    try:
        return FleetFile.model_validate(data)
    except ValidationError as error:
        msg = told(error.errors()[0], text, source, _known)
        raise ConfigError(msg) from None


def _known(location: Location) -> list[str]:
    section = ".".join(part for part in location if isinstance(part, str))
    fields = _SECTIONS[section].model_fields if section in _SECTIONS else FleetFile.model_fields
    return list(fields)


_SECTIONS: dict[str, type[Section]] = {
    "fleet": FleetSection,
    "devices": DeviceSection,
    "models": ModelSection,
    "applications": ApplicationSection,
    "applications.stages": StageSection,
    "margins": MarginsSection,
    "interference": InterferenceSection,
    "batch_distribution": BatchDistributionSection,
    "mig": MigSection,
    "limits": LimitsSection,
    "server": ServerSection,
    "tracing": TracingSection,
    "control": ControlSection,
}


def describe() -> Iterator[tuple[str, str, Any, str]]:
    """Every key as (section, key, default, meaning)."""
    for name, section in _SECTIONS.items():
        for key, field in section.model_fields.items():
            default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            yield name, key, default, field.description or ""
