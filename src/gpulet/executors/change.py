"""What another plan, or other models, mean for the posts that there are: which stay, which come, which go."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from gpulet.executors.ground import Post
from gpulet.executors.stations import Station
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.plan import GpuletId, Plan


@dataclass(frozen=True, slots=True)
class Gently:
    """How new workers come up beside serving: for `most_s` in idle time, a third of it hardly while somebody `waits`; then in haste."""

    waits: Callable[[], bool] = bool
    most_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Aim:
    """What is to be in force: the plan, the models that are `wanted` of it (None: as now), brought up `gently` or in haste."""

    plan: Plan
    wanted: Mapping[str, WorkerModel] | None = None
    gently: Gently | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Posts that stay with what they become, those that re-cut themselves, those to be manned, those that go."""

    kept: tuple[tuple[Station, Post], ...]
    inner: tuple[tuple[Station, Post], ...]
    fresh: tuple[Station, ...]
    gone: tuple[Station, ...]

    @property
    def manned(self) -> tuple[Station, ...]:
        """Of the fresh ones those that get a worker: a gpulet of which no model is wanted needs none."""
        return tuple(station for station in self.fresh if station.given or not station.post.is_alone)


def change_to(aim: Aim, posts: Iterable[Post], workers: Workers) -> Change:
    """What has to happen with the posts that there are, so that these are."""
    stations, old, plan = workers.stations, workers.plan, aim.plan
    kept: list[tuple[Station, Post]] = []
    inner: list[tuple[Station, Post]] = []
    fresh: list[Station] = []
    for post in posts:
        given = workers.shelf.for_post(post, aim.wanted)
        same = next((s for s in stations if _is_same(s.post, post) and _has(s, given, workers.refused)), None)
        if same is None:
            fresh.append(Station(post))
            fresh[-1].given = given
        else:
            is_kept = post.is_alone or _on(old, post.device) == _on(plan, post.device)
            is_kept = is_kept or (not same.is_up and _only_loses(same.post, post))
            (kept if is_kept else inner).append((same, post))
    staying = [station for station, _ in (*kept, *inner)]
    gone = tuple(station for station in stations if station not in staying)
    return Change(tuple(kept), tuple(inner), tuple(fresh), gone)


def _on(plan: Plan, device: int) -> tuple[object, ...]:
    """What a plan has on a device."""
    mine = (g for g in plan.gpulets if g.device == device)
    return (*mine, *(r for r in plan.residents if r.device == device))


def _only_loses(old: Post, new: Post) -> bool:
    """Whether the same gpulets have some turns less: whoever comes up for the old ones will do."""
    before, after = _places(old), _places(new)
    if [place[:-1] for place in before] != [place[:-1] for place in after]:
        return False
    return all({*less} <= {*more} for (*_, less), (*_, more) in zip(after, before, strict=True))


def _is_same(old: Post, new: Post) -> bool:
    """A post that holds a device stays with it; one that is a gpulet, if nothing but its rates changes."""
    if (old.device, old.is_alone) != (new.device, new.is_alone):
        return False
    if not old.is_alone:
        return True
    return (_places(old), old.environment, old.cores) == (_places(new), new.environment, new.cores)


def _has(station: Station, wanted: Iterable[WorkerModel], refused: Collection[str]) -> bool:
    """Whether its worker was given these, but for what cannot be loaded anyway."""
    if not station.post.is_alone:
        return True
    return {m for m in station.given if m.name not in refused} == {m for m in wanted if m.name not in refused}


def _places(post: Post) -> list[tuple[GpuletId, int, int, int, list[tuple[str, int]]]]:
    return [(g.id, g.size.sms, g.offset, g.process, sorted((t.model, t.batch) for t in g.turns)) for g in post.gpulets]
