"""Every step's messages as JSON lines, and back: feed a journal's events to a fresh core and the commands must agree.

Line 1 is a `Header` with all that a core is made of. Every other line is `[now, events, commands]`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gpulet.application import Application
from gpulet.core.messages import Command, Event
from gpulet.core.ports import Core, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device
from gpulet.errors import BadInput
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Point, Profile, Statistic
from gpulet.units import Instant

FORMAT = 1
Observe = Callable[[Instant, Sequence[Event], Sequence[Command]], None]


class Header(msgspec.Struct, frozen=True):
    """What a fresh core needs: the system's name, the problem, the plan and the limits."""

    format: int
    system: str
    models: tuple[Model, ...]
    demand: dict[str, float]
    devices: tuple[Device, ...]
    points: tuple[Point, ...]
    statistic: Statistic
    plan: Plan
    limits: Limits
    applications: tuple[Application, ...] = ()
    analytic: str = ""
    control: dict[str, bool | float | str] = {}
    began: Instant = 0

    @classmethod
    def of(
        cls,
        system: str,
        problem: Problem,
        plan: Plan,
        limits: Limits,
        control: Mapping[str, bool | float | str] | None = None,
        began: Instant = 0,
    ) -> "Header":
        """The header of a core made of these at that instant; `control` are the settings of live control."""
        return cls(
            FORMAT,
            system,
            tuple(problem.models.values()),
            dict(problem.demand),
            problem.devices,
            problem.profile.points,
            problem.profile.statistic,
            plan,
            limits,
            problem.applications,
            problem.profile.analytic,
            dict(control or {}),
            began,
        )

    def problem(self) -> Problem:
        """The problem the core was made for."""
        models = {m.name: m for m in self.models}
        profile = Profile(self.points, self.statistic, analytic=self.analytic)
        return Problem(models, self.demand, self.devices, profile, applications=self.applications)


_encoder = msgspec.json.Encoder()
_header = msgspec.json.Decoder(Header)
_entry = msgspec.json.Decoder(tuple[Instant, tuple[Event, ...], msgspec.Raw])


def encode_header(header: Header) -> bytes:
    """The journal's first line."""
    return _encoder.encode(header) + b"\n"


def encode_step(now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> bytes:
    """One step's line."""
    return _encoder.encode((now, events, commands)) + b"\n"


def read_header(line: bytes) -> Header:
    """The journal's first line back; raises `BadInput` when it is none or of another format."""
    try:
        header = _header.decode(line)
    except msgspec.MsgspecError as error:
        msg = f"not a gpulet journal: {error}"
        raise BadInput(msg) from None
    if header.format != FORMAT:
        msg = f"journal format {header.format}; this gpulet reads format {FORMAT}"
        raise BadInput(msg)
    return header


@dataclass(frozen=True, slots=True)
class Difference:
    """A line where a fresh core commanded something else, as JSON."""

    line: int
    journal: str
    replayed: str


def replay(scheduler: Core, lines: Sequence[bytes], observe: Observe | None = None) -> Iterator[Difference]:
    """Feed the journal's steps (all lines but the header) to a fresh core; yield where its commands differ.

    Lines keep their ends: a last one without, cut off by a crash or still being written, is left out. `observe` sees
    every step as the fresh core took it.
    """
    for number, line in enumerate(_whole(lines), start=2):
        now, events, commands = _step(number, line)
        fresh = scheduler.step(now, *events)
        if observe:
            observe(now, events, fresh)
        again = _encoder.encode(fresh)
        if again != bytes(commands):
            yield Difference(number, bytes(commands).decode(), again.decode())


def span(lines: Sequence[bytes]) -> tuple[Instant, Instant]:
    """When the first and the last of a journal's steps were (all lines but the header); 0 where there are none."""
    whole = _whole(lines)
    return (_step(2, whole[0])[0], _step(len(whole) + 1, whole[-1])[0]) if whole else (0, 0)


def _whole(lines: Sequence[bytes]) -> Sequence[bytes]:
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def _step(number: int, line: bytes) -> tuple[Instant, tuple[Event, ...], msgspec.Raw]:
    try:
        return _entry.decode(line)
    except msgspec.MsgspecError as error:
        msg = f"journal line {number}: {error}"
        raise BadInput(msg) from None
