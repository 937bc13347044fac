"""What green contexts do on GPUs, for `doctor`: shown by processes that hold a GPU each for some seconds, and then end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from gpulet.device import Kind
from gpulet.doctor import Check, Verdict
from gpulet.errors import Unusable
from gpulet.executors.gpus import REAL, Gpus
from gpulet.executors.process import Program, WorkerProcess
from gpulet.executors.wire import FromWorker, Prove, Proven, Refused, Shown, WorkerModel
from gpulet.fleetfile import Site
from gpulet.grounds import visible
from gpulet.problems import DEFAULT_MAX_BATCH
from gpulet.units import MIB, PLAIN

_PATIENCE_S = 60.0
"""For one thing to be shown; of a model, for each of its sizes."""


def models_of(site: Site | None) -> tuple[WorkerModel, ...]:
    """As workers load them before anything is planned."""
    sections = site.sections if site else ()
    return tuple(
        WorkerModel(
            s.name, str(site.artifacts[s.name].path), s.max_batch or DEFAULT_MAX_BATCH, tuple(s.shapes) or (PLAIN,)
        )
        for s in sections
        if site and s.name in site.artifacts
    )


def prove_green(
    gpus: Sequence[tuple[int, Kind]], models: Sequence[WorkerModel], program: Program, *, is_asked: bool, note: str = ""
) -> tuple[Check, ...]:
    """Every check on every GPU, all at the same time; `note` stands at each line's end."""
    asks = [(index, _ask(index, kind, models, program)) for index, kind in gpus]

    async def all_of_them() -> list[list[Check]]:
        return await asyncio.gather(*(_checks(index, ask, program, is_asked=is_asked) for index, ask in asks))

    found = [check for checks in asyncio.run(all_of_them()) for check in checks]
    return tuple(replace(check, says=f"{check.says}{note}") for check in found)


def _ask(index: int, kind: Kind, models: Sequence[WorkerModel], program: Program) -> Prove | Unusable:
    try:
        return Prove(
            Gpus(visible() if program.arguments[:1] == REAL.arguments else None).environment(index), kind, tuple(models)
        )
    except Unusable as error:
        return error


async def _checks(index: int, ask: Prove | Unusable, program: Program, *, is_asked: bool) -> list[Check]:
    if isinstance(ask, Unusable):
        return [Check(f"green {index}", Verdict.NO, str(ask), is_asked=is_asked)]
    shown, end = await _hear(ask, replace(program, slots=1, slot_bytes=MIB))
    checks = [
        Check(
            f"green {index} {s.name}",
            Verdict.OK if s.is_shown else Verdict.NO,
            s.says,
            dict(s.numbers),
            is_asked and s.is_needed,
        )
        for s in shown
    ]
    if end:
        where = f" after {shown[-1].name}" if shown else ""
        checks.append(Check(f"green {index}", Verdict.NO, f"{end}{where}", is_asked=is_asked))
    return checks


async def _hear(ask: Prove, program: Program) -> tuple[list[Shown], str]:
    """What the process shows, and why it ended before its time, if it did."""
    heard: asyncio.Queue[FromWorker | None] = asyncio.Queue()
    worker = WorkerProcess(heard.put_nowait, lambda: heard.put_nowait(None), program)
    worker.send(ask)
    shown: list[Shown] = []
    try:
        while True:
            match await asyncio.wait_for(heard.get(), _PATIENCE_S):
                case Shown() as one:
                    shown.append(one)
                case Proven():
                    return shown, ""
                case Refused() as refused:
                    return shown, refused.error
                case None:
                    return shown, "its process died"
                case _:
                    pass  # it says that it is alive
    except TimeoutError:
        return shown, f"nothing more within {_PATIENCE_S:g} s"
    finally:
        await worker.close()
