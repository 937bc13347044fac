"""A fleet file or a model repository becomes a problem to plan: the place where files, profiles and types meet."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpulet.application import Application, models_of
from gpulet.applicationfile import read_applications
from gpulet.config import DeviceSection, FleetFile, ModelSection, read_fleet_file
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Kind, Mechanism, cpu_kind, find_kind, sizes, with_mig_sms
from gpulet.errors import ConfigError
from gpulet.repository import CPU_FORMATS, GPU_FORMATS, Artifact
from gpulet.repository.artifact import NO_WISHES, Wishes
from gpulet.repository.offering import Offer, offer_of, wished
from gpulet.repository.taking import Report
from gpulet.store import ProfileStore, cache_directory, cpu_tag, gpu_tag, version_of
from gpulet.systems import System, composed

ExecutorName = Literal["simulated", "cpu", "gpu", "rehearsal"]
FLEET_FILE = "gpulet.toml"


@dataclass(frozen=True, slots=True)
class Site:
    """What a target names, checked, before any profile is needed. `artifacts` are the models on disk that are served.

    `sections` are the listed models and those that only applications need. `offer` is all that the repositories have,
    `target` what was read, if anything was.
    """

    config: FleetFile
    folder: Path
    name: str
    system: System
    devices: tuple[Device, ...]
    executor: ExecutorName
    sections: tuple[ModelSection, ...]
    applications: tuple[Application, ...]
    artifacts: Mapping[str, Artifact]
    profile_path: str
    store: ProfileStore
    offer: Offer
    target: Path | None = None

    @property
    def refused(self) -> Mapping[str, str]:
        """Models of the repositories that cannot be served, and why; of those that a fleet file lists, if it lists any."""
        listed = {s.name for s in self.config.models}
        return {name: why for name, why in self.offer.found.refused.items() if name in listed or not listed}

    @property
    def reports(self) -> Mapping[str, Report]:
        """By model, what of its own configuration has no effect."""
        return {name: report for name, report in self.offer.found.reports.items() if name in self.artifacts}

    def wishes(self, name: str) -> Wishes:
        """What a model's own configuration asks for."""
        return self.artifacts[name].wishes if name in self.artifacts else NO_WISHES

    def most_rows(self, section: ModelSection) -> int:
        """The largest batch that the fleet file and the model's own configuration both allow; 0: neither says."""
        said = [most for most in (section.max_batch, self.wishes(section.name).max_batch) if most]
        return min(said, default=0)

    @property
    def dispatcher_name(self) -> str:
        """The system whose dispatcher serves."""
        return self.config.fleet.dispatcher or self.name

    def without(self, names: Collection[str]) -> "Site":
        """The site less some models; raises `ConfigError` when none is left."""
        left = tuple(s for s in self.sections if s.name not in names)
        if not left:
            msg = f"no model is left to serve; refused were {', '.join(names)}"
            raise ConfigError(msg)
        artifacts = {name: a for name, a in self.artifacts.items() if name not in names}
        return replace(self, sections=left, artifacts=artifacts)

    @property
    def formats(self) -> tuple[str, ...]:
        """The files that a model of its repository may be."""
        return CPU_FORMATS if self.executor in {"cpu", "simulated"} else GPU_FORMATS

    @property
    def limits(self) -> Limits:
        """What the scheduler keeps by itself."""
        return Limits(self.config.limits.max_queue, self.system.drops_early)


def usable_cores() -> tuple[int, ...]:
    """The cores this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


def open_site(target: Path, *, system: str = "") -> Site:
    """Read a fleet file, a directory with a `gpulet.toml`, or a bare model repository on all cores.

    Raises `ConfigError` for anything that cannot be: unknown kind, system or model, no models, mixed devices.
    """
    config, folder = _read_target(target)
    return replace(site_of(config, folder, system=system, source=str(target)), target=target)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a target asks of the machine; `site` where GPUs, real or rehearsed, have a model repository."""

    devices: tuple[Device, ...]
    executor: ExecutorName
    site: Site | None = None


def wanted(target: Path) -> Wanted:
    """Before any profile is needed; raises `ConfigError`. Without a repository models are not looked at."""
    config, folder = _read_target(target)
    devices, executor = _devices(config.devices), _executor(config.devices)
    has_models = executor in {"gpu", "rehearsal"} and config.server.repository
    return Wanted(devices, executor, site_of(config, folder, source=str(target)) if has_models else None)


def site_of(config: FleetFile, folder: Path, *, system: str = "", source: str = "fleet") -> Site:
    """The same for a fleet file that is read already; its paths are relative to `folder`."""
    devices = _devices(config.devices)
    executor = _executor(config.devices)
    formats = CPU_FORMATS if executor in {"cpu", "simulated"} else GPU_FORMATS
    offer = offer_of(config.server, folder, formats)
    artifacts = offer.found.artifacts
    applications = read_applications(config, executor)
    listed = tuple(config.models) if config.models or applications else _sections(artifacts)
    needed = dict.fromkeys(name for application in applications for name in models_of(application))
    sections = (*listed, *_sections(name for name in needed if name not in {s.name for s in listed}))
    _refuse_twins(source, sections)
    if executor != "simulated":
        sections = tuple(s for s in sections if not offer.is_refused(s.name))
        if executor == "cpu" or artifacts:
            _refuse_absent(source, sections, artifacts)
    if not sections:
        msg = f"{source}: {offer.why_empty()}"
        raise ConfigError(msg)
    sections = tuple(wished(s, artifacts.get(s.name)) for s in sections)
    chosen = composed(system or config.fleet.system, config.fleet.planner, config.fleet.dispatcher)
    if chosen.loads and config.control.mode != "off":
        msg = f"[control] mode = {config.control.mode!r}: system {system or config.fleet.system} loads and evicts models by itself"
        raise ConfigError(msg)
    return Site(
        config,
        folder,
        system or config.fleet.system,
        chosen,
        devices,
        executor,
        sections,
        applications,
        {s.name: artifacts[s.name] for s in sections if s.name in artifacts},
        _only("profile", [d.profile for d in config.devices]),
        _store(devices, executor),
        offer,
    )


def _store(devices: tuple[Device, ...], executor: ExecutorName) -> ProfileStore:
    """GPUs' tables go by kind and mechanism: the same SMs are not as fast as a MIG instance and as a share of MPS."""
    if devices[0].kind.name == "cpu":
        tag, runtime = cpu_tag(sum(d.kind.sms for d in devices)), version_of("onnxruntime")
        return ProfileStore(cache_directory(), tag, runtime)
    tag = gpu_tag(devices[0].kind.name, devices[0].mechanism)
    tag = f"rehearsed-{tag}" if executor == "rehearsal" else tag
    return ProfileStore(cache_directory(), tag, version_of("torch"))


def _sections(names: Iterable[str]) -> tuple[ModelSection, ...]:
    """Models of which nothing but the name is said."""
    return tuple(ModelSection.model_construct(name=name) for name in names)


def _read_target(target: Path) -> tuple[FleetFile, Path]:
    if not target.is_dir():
        return read_fleet_file(target), target.parent
    if (target / FLEET_FILE).exists():
        return read_fleet_file(target / FLEET_FILE), target
    data = {"devices": [{"kind": "cpu"}], "server": {"repository": "."}}
    return FleetFile.model_validate(data), target


def _devices(sections: list[DeviceSection]) -> tuple[Device, ...]:
    _only("kind", [s.kind for s in sections])
    _only("fit", [s.fit for s in sections])
    if sections[0].fit and sections[0].kind == "cpu":
        msg = "fit: the analytic model is of GPUs; measure a CPU with `gpulet profile`"
        raise ConfigError(msg)
    _only("mig_sms", [str(dict(sorted(s.mig_sms.items()))) for s in sections])
    devices: list[Device] = []
    for section in sections:
        kind = _kind(section)
        name = section.mechanism or ("cpu" if section.kind == "cpu" else "mps")
        mechanism = Mechanism(name)
        allowed = {"cpu", "whole"} if section.kind == "cpu" else {"whole", "mps", "mig", "green"}
        if name not in allowed:
            msg = f"a device of kind {section.kind} cannot be cut by mechanism {name}"
            raise ConfigError(msg)
        if section.mig_sms and mechanism is not Mechanism.MIG:
            msg = f"mig_sms are for devices that mechanism mig cuts, not {name}"
            raise ConfigError(msg)
        sizes(kind, mechanism)
        if section.resizes and mechanism is not Mechanism.MPS:
            msg = f"resizes is for devices that mechanism mps cuts, not {name}"
            raise ConfigError(msg)
        devices += [
            Device(len(devices) + n, kind, mechanism, section.contention, section.resizes) for n in range(section.count)
        ]
    return tuple(devices)


def _kind(section: DeviceSection) -> Kind:
    if section.kind != "cpu":
        return with_mig_sms(find_kind(section.kind), section.mig_sms)
    cores = len(usable_cores())
    is_real = section.executor != "simulated"
    if is_real and (section.cores > cores or section.count > 1):
        msg = f"{section.count} x {section.cores or cores} cores asked of the {cores} that this process may use"
        raise ConfigError(msg)
    return cpu_kind(section.cores or cores)


def _only(what: str, values: list[str]) -> str:
    """One value for the whole fleet: profiles of several kinds of devices cannot be planned together yet."""
    if len(set(values)) > 1:
        msg = f"devices of one fleet must agree in {what}; found {', '.join(sorted(set(values)))}"
        raise ConfigError(msg)
    return values[0]


def _executor(sections: list[DeviceSection]) -> ExecutorName:
    kind = sections[0].kind
    real: ExecutorName = "cpu" if kind == "cpu" else "gpu"
    chosen = _only("executor", [s.executor or real for s in sections])
    if chosen not in ({"cpu", "simulated"} if kind == "cpu" else {"gpu", "simulated", "rehearsal"}):
        msg = f"executor {chosen} cannot run on a device of kind {kind}"
        raise ConfigError(msg)
    if chosen == "rehearsal" and sections[0].mechanism not in {"green", "whole"}:
        msg = f"executor rehearsal: devices cut by {sections[0].mechanism or 'mps'}; only green and whole can be rehearsed"
        raise ConfigError(msg)
    return chosen  # type: ignore[return-value] # one of the names above


def _refuse_twins(source: str, sections: tuple[ModelSection, ...]) -> None:
    names = [s.name for s in sections]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        msg = f"{source}: model {twins[0]} is listed {names.count(twins[0])} times"
        raise ConfigError(msg)


def _refuse_absent(source: str, sections: tuple[ModelSection, ...], artifacts: Mapping[str, Artifact]) -> None:
    for section in sections:
        if section.name not in artifacts:
            known = ", ".join(artifacts) or "empty"
            msg = f"{source}: unknown model {section.name!r}; the repository is {known}"
            raise ConfigError(msg)


def servable(site: Site) -> Site:
    """The site, if its executor can do what its system asks; raises `ConfigError` where it cannot."""
    if site.executor == "simulated":
        return site
    mechanism = site.devices[0].mechanism
    if site.system.carves and mechanism is not Mechanism.GREEN:
        whose = (
            "cpu workers keep their cores" if site.executor == "cpu" else f"shares by {mechanism} stand as they are cut"
        )
        msg = f"system {site.dispatcher_name} changes shares from run to run, and {whose}: "
        raise ConfigError(msg + 'plan and simulate it, or write executor = "simulated"')
    if site.system.loads:
        msg = f"system {site.dispatcher_name} loads and evicts models while it serves, and workers load them with the plan: "
        raise ConfigError(msg + 'plan and simulate it, or write executor = "simulated"')
    if any(device.resizes for device in site.devices):
        msg = "resizes = true: workers of every size beside one another are emulated only; mechanism green resizes for real"
        raise ConfigError(msg)
    if not site.artifacts:
        msg = "nothing to serve: name a model repository under [server]"
        raise ConfigError(msg)
    return site
