"""Where the answered requests of one model spent their time, as Triton's statistics divide it.

A request waits (`queue`, arrival to start), then its batch runs: `input` is what the executor took to copy its rows to where
they run, `infer` the time in the model's runtime, `output` all the rest until its answer. Of a run that nobody measured from
inside all counts as `infer`. A batch's times count once for each of its requests, as Triton's do.
"""

from dataclasses import dataclass, field

from gpulet.core.histogram import Histogram
from gpulet.core.messages import Finished
from gpulet.units import Duration, Instant


@dataclass(slots=True)
class Runs:
    """All answered batches of so many rows."""

    count: int = 0
    input: Duration = 0
    infer: Duration = 0
    output: Duration = 0


@dataclass(slots=True)
class Phases:
    """One model's. `runs` are batches by their rows; `refused` is arrival to refusal, summed; `last` when one was answered."""

    queue: Histogram = field(default_factory=Histogram)
    input: Histogram = field(default_factory=Histogram)
    infer: Histogram = field(default_factory=Histogram)
    output: Histogram = field(default_factory=Histogram)
    runs: dict[int, Runs] = field(default_factory=dict)
    refused: Duration = 0
    last: Instant = 0

    def end(self, now: Instant, ran: Duration, finished: Finished, rows: int, requests: int) -> None:
        """A batch is answered, `ran` after its start."""
        copied, infer = finished.copied, finished.computed
        rest = ran - copied - infer
        if not infer or rest < 0:  # not measured; or by a clock that does not agree with ours to the nanosecond
            copied = min(copied, ran)
            infer, rest = ran - copied, 0
        self.input.add(copied, requests)
        self.infer.add(infer, requests)
        self.output.add(rest, requests)
        runs = self.runs.get(rows)
        if runs is None:
            runs = self.runs[rows] = Runs()
        runs.count += 1
        runs.input += copied
        runs.infer += infer
        runs.output += rest
        self.last = now
