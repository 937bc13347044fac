"""What a system is: a planner and a dispatcher that belong together."""

from dataclasses import dataclass

from gpulet.core.ports import MakeDispatcher, Planner


@dataclass(frozen=True, slots=True)
class System:
    """A planner and a dispatcher that belong together.

    `drops_early`: what cannot be in time is given up. `carves`: the dispatcher chooses a size for each run. `loads`: it loads
    and evicts models. `prober`: a quicker planner, left out where the planner is quick. `sketcher`: one whose plans nobody has
    judged, likewise. `retunes`: its dispatcher serves whatever turns gpulets have, so that a plan in force may be given others
    at once.
    """

    planner: Planner
    dispatcher: MakeDispatcher
    drops_early: bool = True
    carves: bool = False
    loads: bool = False
    about: str = ""
    prober: Planner | None = None
    sketcher: Planner | None = None
    retunes: bool = False

    @property
    def probe(self) -> Planner:
        """For callers that only ask, many times, whether there is a plan: what it accepts the planner accepts too."""
        return self.prober or self.planner

    @property
    def sketch(self) -> Planner:
        """For callers that ask many times, and judge what they take by themselves."""
        return self.sketcher or self.probe
