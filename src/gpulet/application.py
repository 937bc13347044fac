"""Applications: several models that together answer one request, stage after stage.

A stage makes `fan_out` requests for every finished request of its parent. A first stage, and one that waits for several
parents (a join), makes `fan_out` for every request of the application.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from gpulet.errors import ConfigError
from gpulet.units import MS, Duration, to_ms


@dataclass(frozen=True, slots=True)
class Stage:
    """One model's part: it starts once the stages `after` are done, and should take no longer than `budget`.

    `least` is the shortest time its model can take; 0 where nobody has said. `budget` 0: not split yet.
    """

    name: str
    model: str
    after: tuple[str, ...] = ()
    fan_out: float = 1.0
    budget: Duration = 0
    least: Duration = 0


@dataclass(frozen=True, slots=True)
class Application:
    """Stages that answer one request within `slo`.

    Raises `ConfigError` when there are no stages, two of one name, an unknown or circular `after`, a fan-out that is not
    above 0, or a path whose budgets exceed the objective.
    """

    name: str
    slo: Duration
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        self._refuse_values()
        self._refuse_names()
        self._refuse_cycle()
        self._refuse_budgets()

    @property
    def leaves(self) -> tuple[Stage, ...]:
        """The stages that no other waits for: what they give is the answer."""
        waited_for = {parent for stage in self.stages for parent in stage.after}
        return tuple(stage for stage in self.stages if stage.name not in waited_for)

    @property
    def is_tree(self) -> bool:
        """Whether no stage waits for several others."""
        return all(len(stage.after) <= 1 for stage in self.stages)

    def children(self, name: str) -> tuple[Stage, ...]:
        """The stages that wait for this one."""
        return tuple(stage for stage in self.stages if name in stage.after)

    def ordered(self) -> tuple[Stage, ...]:
        """Every stage behind all that it waits for, otherwise as they are listed."""
        placed: dict[str, Stage] = {}
        while len(placed) < len(self.stages):
            placed |= {s.name: s for s in self.stages if s.name not in placed and all(p in placed for p in s.after)}
        return tuple(placed.values())

    def requests_per_request(self) -> dict[str, float]:
        """How many requests each stage gets for one of the application, by stage."""
        counts: dict[str, float] = {}
        for stage in self.ordered():
            parent = counts[stage.after[0]] if len(stage.after) == 1 else 1.0
            counts[stage.name] = parent * stage.fan_out
        return counts

    def longest_after(self, lengths: Mapping[str, Duration]) -> dict[str, Duration]:
        """The length of the longest path behind each stage, itself left out; `lengths` by stage."""
        after: dict[str, Duration] = {}
        for stage in reversed(self.ordered()):
            after[stage.name] = max((lengths[c.name] + after[c.name] for c in self.children(stage.name)), default=0)
        return after

    def longest_path(self, lengths: Mapping[str, Duration]) -> tuple[Stage, ...]:
        """The path of which the lengths sum to most."""
        after = self.longest_after(lengths)

        def whole(stage: Stage) -> Duration:
            return lengths[stage.name] + after[stage.name]

        path = [max((stage for stage in self.stages if not stage.after), key=whole)]
        while children := self.children(path[-1].name):
            path.append(max(children, key=whole))
        return tuple(path)

    def _refuse_values(self) -> None:
        if not self.stages:
            msg = f"application {self.name} has no stages"
            raise ConfigError(msg)
        if self.slo <= 0:
            msg = f"application {self.name}: slo_ms must be above 0, is {self.slo / MS:g}"
            raise ConfigError(msg)
        for stage in self.stages:
            if not stage.fan_out > 0 or not isfinite(stage.fan_out):
                msg = f"application {self.name}: stage {stage.name}: fan_out must be above 0, is {stage.fan_out:g}"
                raise ConfigError(msg)

    def _refuse_names(self) -> None:
        names = [stage.name for stage in self.stages]
        for stage in self.stages:
            if names.count(stage.name) > 1:
                msg = f"application {self.name}: stage {stage.name} is listed {names.count(stage.name)} times"
                raise ConfigError(msg)
            unknown = [parent for parent in stage.after if parent not in names]
            if unknown:
                msg = f"application {self.name}: stage {stage.name} is after unknown stage {unknown[0]!r}; known are "
                raise ConfigError(msg + ", ".join(names))
            if len(set(stage.after)) < len(stage.after):
                msg = f"application {self.name}: stage {stage.name} names a stage twice in after: "
                raise ConfigError(msg + ", ".join(stage.after))

    def _refuse_cycle(self) -> None:
        """Stages that wait for nothing that is left fall away; what stays is a cycle or behind one."""
        left = {stage.name: stage.after for stage in self.stages}
        while free := [name for name, after in left.items() if not any(parent in left for parent in after)]:
            for name in free:
                del left[name]
        if left:
            back = [next(iter(left))]
            while back[-1] not in back[:-1]:
                back.append(next(parent for parent in left[back[-1]] if parent in left))
            cycle = back[back.index(back[-1]) :][::-1]
            msg = (
                f"application {self.name}: stages {' -> '.join(cycle)} wait for each other, a cycle of {len(cycle) - 1}"
            )
            raise ConfigError(msg)

    def _refuse_budgets(self) -> None:
        budgets = {stage.name: stage.budget for stage in self.stages}
        path = self.longest_path(budgets)
        total = sum(stage.budget for stage in path)
        if total > self.slo:
            names = " -> ".join(stage.name for stage in path)
            sums = " + ".join(f"{to_ms(stage.budget):g}" for stage in path)
            msg = f"application {self.name}: stages {names} have budgets of {sums} = {to_ms(total):g} ms, "
            raise ConfigError(msg + f"its SLO is {to_ms(self.slo):g} ms")


def models_of(application: Application) -> tuple[str, ...]:
    """The models it needs, each once."""
    return tuple(dict.fromkeys(stage.model for stage in application.stages))


def _lenet(number: int) -> Stage:
    return Stage(f"lenet{number}", f"lenet{number}", budget=108 * MS)


BUILT_IN: Mapping[str, Application] = {
    "game": Application("game", 108 * MS, (Stage("resnet50", "resnet50", budget=108 * MS), *map(_lenet, range(1, 7)))),
    "traffic": Application(
        "traffic",
        202 * MS,
        (
            Stage("ssd-mobilenetv1", "ssd-mobilenetv1", budget=90 * MS),
            Stage("googlenet", "googlenet", ("ssd-mobilenetv1",), budget=112 * MS),
            Stage("vgg16", "vgg16", ("ssd-mobilenetv1",), budget=112 * MS),
        ),
    ),
}
"""The two applications of gpu-lets (ATC'22, section 6.1), with the budgets of its artifact."""
