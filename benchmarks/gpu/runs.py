"""Which experiments there are, what they ask, and which run makes them in which order."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experiment:
    """Its module, its limit in seconds, and whether it needs the exported models."""

    module: str
    seconds: float
    needs_models: bool = False


EXPERIMENTS: Mapping[str, Experiment] = {
    "E0": Experiment("e00_machine", 40),
    "E1": Experiment("e01_sets", 60),
    "E2": Experiment("e02_graphs", 60),
    "E3": Experiment("e03_costs", 70, needs_models=True),
    "E4": Experiment("e04_queues", 75),
    "E5": Experiment("e05_latency", 200, needs_models=True),
    "E5b": Experiment("e05_choices", 90, needs_models=True),
    "E6": Experiment("e06_interference", 110),
    "E7": Experiment("e07_threads", 90, needs_models=True),
    "E8": Experiment("e08_recut", 90, needs_models=True),
    "E9": Experiment("e09_copies", 40),
    "E10": Experiment("e10_mps", 90, needs_models=True),
    "E11": Experiment("e11_faults", 110, needs_models=True),
    "E12": Experiment("e12_metrics", 50),
    "E13": Experiment("e13_soak", 90, needs_models=True),
    "profile": Experiment("profiling", 200, needs_models=True),
    "live": Experiment("live", 520),
}
RUNS: Mapping[str, tuple[str, ...]] = {
    "A": ("E0", "E1", "E2", "E4", "E3", "E5", "E6"),
    "B": ("E8", "E13", "E7", "E9", "E12", "E11", "E5b"),
    "C": ("profile", "live"),
    "D": ("live", "profile", "E10"),
}
"""Most valuable first; E4 needs no model, so that they are exported meanwhile. D is what C has left."""
