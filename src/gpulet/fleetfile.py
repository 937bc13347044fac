"""A fleet file or a model repository becomes a problem to plan: the place where files, profiles and types meet."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpulet.application import Application, models_of
from gpulet.applicationfile import read_applications, with_applications
from gpulet.config import DeviceSection, FleetFile, ModelSection, read_fleet_file
from gpulet.core.ports import Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Kind, Mechanism, cpu_kind, find_kind, mps_size, sizes
from gpulet.duty import Share, saturated_rate
from gpulet.errors import ConfigError, ProfileError
from gpulet.interference import Interference, parse_interference
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Point, Profile, Statistic, parse_profile
from gpulet.repository import Artifact, scan
from gpulet.store import ProfileStore, cache_directory, device_tag
from gpulet.systems import System, find_system
from gpulet.units import MIB, MS, SECOND, Duration, from_ms

ExecutorName = Literal["simulated", "cpu"]
FLEET_FILE = "gpulet.toml"
DEFAULT_MAX_BATCH = 32
_DEFAULT_SLO_RUNS = 5
_DEFAULT_SLO_LEAST = 25 * MS
_EQUAL_SHARE_LOAD = 0.7
_WHOLE_PCT = 100


@dataclass(frozen=True, slots=True)
class Site:
    """What a target names, checked, before any profile is needed. `artifacts` are the models on disk.

    `sections` are the listed models and those that only applications need.
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
    return site_of(config, folder, system=system, source=str(target))


def site_of(config: FleetFile, folder: Path, *, system: str = "", source: str = "fleet") -> Site:
    """The same for a fleet file that is read already; its paths are relative to `folder`."""
    devices = _devices(config.devices)
    artifacts = scan(folder / config.server.repository) if config.server.repository else {}
    executor = _executor(config.devices)
    applications = read_applications(config, executor)
    listed = tuple(config.models) if config.models or applications else _sections(artifacts)
    needed = dict.fromkeys(name for application in applications for name in models_of(application))
    sections = (*listed, *_sections(name for name in needed if name not in {s.name for s in listed}))
    if not sections:
        msg = f"{source}: no models: write [[models]] or name a repository under [server]"
        raise ConfigError(msg)
    _refuse_twins(source, sections)
    if executor == "cpu":
        _refuse_absent(source, sections, artifacts)
    return Site(
        config,
        folder,
        system or config.fleet.system,
        _system(config, system),
        devices,
        executor,
        sections,
        applications,
        {s.name: artifacts[s.name] for s in sections if s.name in artifacts},
        _only("profile", [d.profile for d in config.devices]),
        ProfileStore(cache_directory(), device_tag(sum(d.kind.sms for d in devices))),
    )


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


def _system(config: FleetFile, override: str) -> System:
    base = find_system(override or config.fleet.system)
    planner = find_system(config.fleet.planner).planner if config.fleet.planner else base.planner
    other = find_system(config.fleet.dispatcher) if config.fleet.dispatcher else base
    return replace(
        base, planner=planner, dispatcher=other.dispatcher, drops_early=other.drops_early, carves=other.carves
    )


def _devices(sections: list[DeviceSection]) -> tuple[Device, ...]:
    _only("kind", [s.kind for s in sections])
    devices: list[Device] = []
    for section in sections:
        kind = _kind(section)
        name = section.mechanism or ("cpu" if section.kind == "cpu" else "mps")
        mechanism = Mechanism(name)
        allowed = {"cpu", "whole"} if section.kind == "cpu" else {"whole", "mps", "mig", "green"}
        if name not in allowed:
            msg = f"a device of kind {section.kind} cannot be cut by mechanism {name}"
            raise ConfigError(msg)
        sizes(kind, mechanism)
        devices += [Device(len(devices) + n, kind, mechanism, section.contention) for n in range(section.count)]
    return tuple(devices)


def _kind(section: DeviceSection) -> Kind:
    if section.kind != "cpu":
        return find_kind(section.kind)
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
    chosen = _only("executor", [s.executor or ("cpu" if s.kind == "cpu" else "") for s in sections])
    if chosen == "cpu" and sections[0].kind != "cpu":
        msg = f"executor cpu cannot run on a device of kind {sections[0].kind}"
        raise ConfigError(msg)
    if chosen not in {"cpu", "simulated"}:
        msg = f'no executor for real devices of kind {sections[0].kind} yet; write executor = "simulated"'
        raise ConfigError(msg)
    return "cpu" if chosen == "cpu" else "simulated"


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
    if site.system.carves and site.executor == "cpu":
        msg = f"system {site.dispatcher_name} changes shares from run to run, and cpu workers keep their cores: "
        raise ConfigError(msg + 'plan and simulate it, or write executor = "simulated"')
    return site


def load_profile(site: Site) -> Profile:
    """The site's profile: its own table, or what the store holds of its models.

    Raises `ProfileError` that names the models nobody has measured.
    """
    kind = site.devices[0].kind
    if site.profile_path:
        path = site.folder / site.profile_path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"profile {path} cannot be read: {error}"
            raise ProfileError(msg) from None
        profile = parse_profile(text, lambda share: _sms(kind, share, str(path)), str(path))
        _refuse_oversize(profile, kind, str(path))
    else:
        profile = Profile(tuple(stored_points(site)))
    missing = [s.name for s in site.sections if s.name not in profile.models]
    if missing:
        where = site.profile_path or "the profile store"
        msg = f"no profile for {', '.join(missing)} in {where}; measure with `gpulet profile`"
        raise ProfileError(msg)
    return profile


def _sms(kind: Kind, share: float, source: str) -> int:
    """A share of the device as SMs; raises `ProfileError` for more than all of it."""
    if share > _WHOLE_PCT:
        msg = f"{source}: share_pct must be at most 100, is {share:g}"
        raise ProfileError(msg)
    return mps_size(kind, share).sms


def _refuse_oversize(profile: Profile, kind: Kind, source: str) -> None:
    """A table of another device kind, most likely."""
    largest = max(profile.points, key=lambda p: p.size)
    if largest.size > kind.sms:
        msg = f"{source}: model {largest.model} was measured on {largest.size} SMs; a {kind.name} has {kind.sms}"
        raise ProfileError(msg)


def stored_points(site: Site) -> list[Point]:
    """What the store holds of the site's models."""
    points: list[Point] = []
    for name, artifact in site.artifacts.items():
        text = site.store.read(artifact.digest)
        if text:
            table = parse_profile(text, lambda share: int(share), str(site.store.path(artifact.digest)))  # noqa: PLW0108
            points += [replace(p, model=name) for p in table.points]
    return points


def make_problem(site: Site, profile: Profile, *, factor: float = 1.0) -> Problem:
    """The problem: models with their objectives, demand times `factor`, devices, and a profile with all margins in it.

    On a CPU the front-end's own time at these rates is one of the margins. Raises `ConfigError` where it leaves none.
    """
    margins = site.config.margins
    chosen = profile.of(Statistic(margins.statistic)).stretched(margins.latency_ratio)
    models = {s.name: _model(s, chosen) for s in site.sections}
    own = {s.name: s.rate for s in site.sections if s.rate}
    bare = Problem(models, own, _measured_devices(site), chosen, sent=own, interference=_interference(site))
    if site.applications:
        rates = {section.name: section.rate for section in site.config.applications}
        bare = with_applications(site.applications, rates, site.sections, bare)
    if len(bare.demand) < len(models):
        shares = {name: rate for name, rate in _equal_share(site, bare).items() if name not in bare.demand}
        bare = replace(bare, demand={**bare.demand, **shares}, sent={**bare.sent, **shares})
    bare = replace(bare, demand=_times(factor, bare.demand), sent=_times(factor, bare.sent))
    share = front_end_share(site, bare)
    if share >= 1:
        rate = sum(bare.demand.values())
        msg = f"the front-end alone would take {share:.0%} of the cores at {rate:.0f} requests/s"
        raise ConfigError(msg)
    return _beside_front_end(site, bare)


def _times(factor: float, rates: Mapping[str, float]) -> dict[str, float]:
    return {name: rate * factor for name, rate in rates.items()}


def _beside_front_end(site: Site, bare: Problem) -> Problem:
    """The front-end runs on the same cores: what it takes, every worker goes slower by."""
    share = front_end_share(site, bare)
    return replace(bare, profile=bare.profile.stretched(1 / (1 - share))) if share else bare


def _measured_devices(site: Site) -> tuple[Device, ...]:
    if site.executor != "cpu":
        return site.devices
    machine = site.store.read_machine()
    return tuple(replace(d, contention=d.contention or machine.contention) for d in site.devices)


def front_end_share(site: Site, problem: Problem) -> float:
    """The share of the machine's cores that the front-end itself takes at the planned rates; 0 beside emulated devices.

    It is counted by rows, as rates are: a request of several rows costs it less than as many requests.
    """
    if site.executor != "cpu":
        return 0.0
    cores = sum(d.kind.sms for d in problem.devices)
    return sum(problem.demand.values()) * site.store.read_machine().front_end / SECOND / cores


def _model(section: ModelSection, profile: Profile) -> Model:
    largest = max(profile.max_batch(section.name, size) for size in profile.sizes(section.name))
    if section.max_batch > largest:
        msg = f"model {section.name}: max_batch {section.max_batch}, but it is profiled for 1 to {largest} rows"
        raise ConfigError(msg)
    max_batch = section.max_batch or min(DEFAULT_MAX_BATCH, largest)
    slo = from_ms(section.slo_ms) if section.slo_ms else _default_slo(section.name, profile)
    memory, row = round(section.memory_mib * MIB), round(section.input_kib * 1024)
    return Model(section.name, slo, max_batch, memory, row)


def _interference(site: Site) -> Interference | None:
    """The model of `[interference]`; on this machine's own cores their contention is measured instead."""
    name = site.config.interference.model
    if not name:
        return None
    path = site.folder / name
    try:
        return parse_interference(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"interference model {path} cannot be read: {error}"
        raise ConfigError(msg) from None


def _default_slo(name: str, profile: Profile) -> Duration:
    """Five single-row runs on the smallest size, at least 25 ms: room to wait for a batch and for a neighbour's turn."""
    return max(_DEFAULT_SLO_LEAST, _DEFAULT_SLO_RUNS * profile.latency(name, profile.sizes(name)[0], 1))


def _equal_share(site: Site, bare: Problem) -> dict[str, float]:
    """Rates for models that came without: an equal share of the fleet's time each, scaled to 70 % of what still fits."""
    size = bare.devices[0].sizes()[-1]
    known = bare.demand
    unknown = {}
    for name, model in bare.models.items():
        if name not in known:
            curve = bare.profile.curve(name, size.sms)
            whole = saturated_rate(Share(curve, model.slo, 1.0, model.max_batch))
            unknown[name] = max(whole, 1e-3) * len(bare.devices) / len(bare.models)

    def fits(factor: float) -> bool:
        asked = replace(bare, demand={**known, **{name: rate * factor for name, rate in unknown.items()}})
        if front_end_share(site, asked) >= 1:
            return False
        return isinstance(site.system.planner(_beside_front_end(site, asked)), Plan)

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    factor = (low or high) * _EQUAL_SHARE_LOAD
    return {**known, **{name: rate * factor for name, rate in unknown.items()}}
