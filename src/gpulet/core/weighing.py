"""Whether another plan is worth the change to it: what it gains over a horizon against what it costs to get there."""

from dataclasses import dataclass

from gpulet.core.staging import Stage
from gpulet.plan import Plan
from gpulet.units import SECOND, Duration


@dataclass(frozen=True, slots=True)
class Weights:
    """`horizon` is how long a plan is expected to last. A gain below `least`, as a share of the demand, is none.

    Of a plan that saves a device no more than `slack` may be lost, in attainment and in what the change costs.
    """

    horizon: Duration = 30 * SECOND
    least: float = 0.001
    slack: float = 0.003


@dataclass(frozen=True, slots=True)
class Offer:
    """A plan for a demand of `rate` rows/s, and which share of it is served in time `before` and `after` the change."""

    rate: float
    before: float
    after: float
    in_force: Plan
    stage: Stage

    @property
    def saved(self) -> int:
        """Devices that are used no longer."""
        return self.in_force.devices_used - self.stage.plan.devices_used


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was considered, in words and numbers, and what was chosen."""

    is_change: bool
    considered: str
    chosen: str


def weigh(offer: Offer, weights: Weights, *, must: bool = False) -> Verdict:
    """Rows gained against rows lost; a device saved counts where next to nothing is lost by it. `must`: there is no choice."""
    horizon_s = weights.horizon / SECOND
    whole = max(offer.rate * horizon_s, 1.0)
    gained, lost = (offer.after - offer.before) * whole, offer.stage.loss
    considered = _told(offer, gained, lost, horizon_s)
    if must:
        return Verdict(True, considered, "the new plan, for the old one cannot stay")
    if offer.after - offer.before >= weights.least and gained > lost:
        return Verdict(True, considered, "the new plan, for what it gains")
    if offer.saved > 0 and gained - lost >= -weights.slack * whole:
        return Verdict(True, considered, f"the new plan, for {offer.saved} devices less")
    return Verdict(False, considered, "the plan in force stays: the change does not pay")


def _told(offer: Offer, gained: float, lost: float, horizon_s: float) -> str:
    stage = offer.stage
    moves = f"{len(stage.stay)} gpulets stay, {len(stage.start)} start, {len(stage.stop)} stop"
    devices = f"devices {offer.in_force.devices_used} to {stage.plan.devices_used}"
    shares = f"in time {offer.before:.2%} to {offer.after:.2%} of {offer.rate:.1f}/s"
    return f"{shares}, {devices}; {moves}; {gained:+.1f} rows in {horizon_s:g} s, the change costs up to {lost:.1f}"
