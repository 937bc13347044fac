"""A site becomes a problem to plan: its profile, its demand, and every margin in the latencies."""

from collections.abc import Mapping
from dataclasses import replace

from gpulet.applicationfile import with_applications
from gpulet.config import ModelSection
from gpulet.core.ports import Problem
from gpulet.device import Device, Kind, Mechanism, mps_size
from gpulet.duty import Share, saturated_rate
from gpulet.errors import ConfigError, ProfileError
from gpulet.fleetfile import Site
from gpulet.interference import CONSTANT, Interference, parse_interference
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Point, Profile, Statistic
from gpulet.profiletable import parse_profile
from gpulet.roofline.analytic import analytic
from gpulet.roofline.few import filled_from_few
from gpulet.rows import SINGLE, RowDistribution, parse_rows
from gpulet.units import MIB, MS, SECOND, US, Duration, from_ms

DEFAULT_MAX_BATCH = 32
_DEFAULT_SLO_RUNS = 5
_DEFAULT_SLO_LEAST = 25 * MS
_EQUAL_SHARE_LOAD = 0.7


def load_profile(site: Site) -> Profile:
    """The site's profile: its own table, what the store holds of its models, or, of GPUs nobody measured, an analytic one.

    Only where a GPU has no table at all is its latency computed, and the profile says so. Raises `ProfileError`
    that names the models nobody has measured, `ConfigError` for what cannot be computed either.
    """
    kind = site.devices[0].kind
    if _is_computed(site):
        return analytic(kind, site.devices[0].sizes(), (s.name for s in site.sections))
    if site.profile_path:
        path = site.folder / site.profile_path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"profile {path} cannot be read: {error}"
            raise ProfileError(msg) from None
        profile = parse_profile(text, lambda share: mps_size(kind, share).sms, str(path))
        _refuse_oversize(profile, kind, str(path))
    else:
        profile = Profile(tuple(stored_points(site)))
    missing = [s.name for s in site.sections if s.name not in profile.models]
    if missing:
        where = site.profile_path or "the profile store"
        msg = f"no profile for {', '.join(missing)} in {where}; measure with `gpulet profile`, or bring a table with `gpulet import-profile`"
        raise ProfileError(msg)
    return _filled(site, profile)


def _filled(site: Site, profile: Profile) -> Profile:
    """With latencies of all sizes, where the fleet asks for it."""
    precision, device = site.config.devices[0].fit, site.devices[0]
    return filled_from_few(profile, device.kind, device.sizes(), precision) if precision else profile


def _is_computed(site: Site) -> bool:
    """Whether nobody measured its devices: GPUs without a table, of which the store knows nothing either."""
    if site.profile_path or site.devices[0].kind.name == "cpu":
        return False
    return site.executor == "simulated" or not stored_points(site)


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
    models = {s.name: _model(site, s, chosen) for s in site.sections}
    sent = {s.name: s.rate for s in site.sections if s.rate}
    rows = _rows(site, models)
    own = {name: rate * rows[name].mean if name in rows else rate for name, rate in sent.items()}
    bare = Problem(
        models,
        own,
        _measured_devices(site),
        chosen,
        sent=sent,
        interference=_interference(site),
        rows=rows,
        slices=_slices(site),
    )
    if site.applications:
        rates = {section.name: section.rate for section in site.config.applications}
        bare = with_applications(site.applications, rates, site.sections, bare)
    _refuse_unknown_use(bare)
    if len(bare.demand) < len(models):
        shares = {name: rate for name, rate in _equal_share(site, bare).items() if name not in bare.demand}
        sent = {name: rate / bare.rows_of(name).mean for name, rate in shares.items()}
        bare = replace(bare, demand={**bare.demand, **shares}, sent={**bare.sent, **sent})
    bare = replace(bare, demand=_times(factor, bare.demand), sent=_times(factor, bare.sent))
    share = front_end_share(site, bare)
    if share >= 1:
        rate = sum(bare.demand.values())
        msg = f"the front-end alone would take {share:.0%} of the cores at {rate:.0f} requests/s"
        raise ConfigError(msg)
    return _beside_front_end(site, bare)


def _rows(site: Site, models: Mapping[str, Model]) -> dict[str, RowDistribution]:
    """The rows of each model's requests, where they are not single; raises `ConfigError` for more than it may run."""
    every = site.config.batch_distribution.rows
    found: dict[str, RowDistribution] = {}
    for section in site.sections:
        rows = parse_rows(section.rows or every)
        if rows.largest > models[section.name].max_batch:
            msg = f"model {section.name}: requests of up to {rows.largest} rows, but its max_batch is "
            raise ConfigError(msg + f"{models[section.name].max_batch}")
        if rows != SINGLE:
            found[section.name] = rows
    if found and site.applications:
        msg = f"model {next(iter(found))}: requests of several rows beside applications, whose requests bring one row each"
        raise ConfigError(msg)
    return found


def _slices(site: Site) -> int:
    """The budget of compute slices; raises `ConfigError` where no device has any."""
    slices, mechanism = site.config.mig.slices, site.devices[0].mechanism
    if slices and mechanism is not Mechanism.MIG:
        msg = f"[mig] slices = {slices}: the devices are cut by {mechanism}, not by mig"
        raise ConfigError(msg)
    return slices


def _refuse_unknown_use(problem: Problem) -> None:
    """A model without utilisation would be a neighbour that costs nothing."""
    if problem.interference is None or set(problem.interference.features) <= set(CONSTANT):
        return
    used = {p.model for p in problem.profile.points if p.l2 or p.dram}
    unknown = [name for name in problem.models if name not in used]
    if unknown:
        msg = f"[interference]: nobody measured L2 and DRAM use of {', '.join(unknown)}; import with --utilization"
        raise ConfigError(msg)


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


def _model(site: Site, section: ModelSection, profile: Profile) -> Model:
    """A configuration's `max_batch_size` bounds what is profiled; a fleet file's `max_batch` must be profiled."""
    largest = max(profile.max_batch(section.name, size) for size in profile.sizes(section.name))
    most = site.most_rows(section)
    if section.max_batch == most > largest:
        msg = f"model {section.name}: max_batch {section.max_batch}, but it is profiled for 1 to {largest} rows"
        raise ConfigError(msg)
    max_batch = min(most or DEFAULT_MAX_BATCH, largest)
    slo = from_ms(section.slo_ms) if section.slo_ms else _default_slo(section.name, profile)
    memory, row = round(section.memory_mib * MIB), round(section.input_kib * 1024)
    queue = min(site.wishes(section.name).max_queue, site.config.limits.max_queue)
    delay = section.max_queue_delay_us * US
    shedding = section.importance, section.weight, section.floor
    return Model(section.name, slo, max_batch, memory, row, queue, delay, *shedding)


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
        return isinstance(site.system.probe(_beside_front_end(site, asked)), Plan)

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    factor = (low or high) * _EQUAL_SHARE_LOAD
    return {**known, **{name: rate * factor for name, rate in unknown.items()}}
