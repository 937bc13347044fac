"""Models that are loaded beyond what a plan needs, so that a later plan may give them turns at once, without building."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gpulet.model import Model
from gpulet.plan import Gpulet, Plan


@dataclass(frozen=True, slots=True)
class Spares:
    """`most` bytes of all copies that are spare, by the `sizes` of a copy; where a size is unknown it counts nothing."""

    most: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)

    def added(self, plan: Plan, models: Mapping[str, Model]) -> Plan:
        """The plan with every model spare on each gpulet that has no turn for it, as far as memory goes; whole gpulets at a time."""
        if not self.most:
            return plan
        memory = {name: model.memory for name, model in models.items()}
        left, gpulets = self.most - sum(self._bytes(gpulet) for gpulet in plan.gpulets), list(plan.gpulets)
        for place, gpulet in enumerate(plan.gpulets):
            filled = _filled(gpulet, models)
            more = self._bytes(filled) - self._bytes(gpulet)
            candidate = replace(plan, gpulets=(*gpulets[:place], filled, *gpulets[place + 1 :]))
            if more <= left and not any(candidate.overfull(memory)):
                gpulets[place] = filled
                left -= more
        return replace(plan, gpulets=tuple(gpulets))

    def _bytes(self, gpulet: Gpulet) -> int:
        """Of what is spare there."""
        return sum(self.sizes.get(name, 0) for name in gpulet.spare) * gpulet.replicas


def _filled(gpulet: Gpulet, models: Mapping[str, Model]) -> Gpulet:
    return replace(gpulet, spare=tuple(sorted({*models, *gpulet.spare} - set(gpulet.models))))
