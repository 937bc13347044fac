"""Who asks for something by admin's calls is answered by the change that was begun because of it, and by no other."""

import asyncio

import pytest

from gpulet.core.control import FROZEN
from gpulet.core.messages import Adopt, DeviceOut, Explain, Force, Replan, Stopping
from gpulet.deciding import Deciding
from gpulet.errors import RequestError
from gpulet.plan import Plan

OUT = DeviceOut(1)
EMPTY = Plan(())


class Live:
    """What was fed."""

    def __init__(self):
        self.fed = []

    def feed(self, event):
        self.fed.append(event)


def replan(number):
    return Replan(number, {}, (0,), "why")


def explain(number, chosen="it"):
    return Explain(number, "seen", "considered", chosen)


def decided(event, *steps):
    """The decision after these steps, each (events, commands); None where it is still waited for."""

    async def run():
        deciding = Deciding(Live())
        task = asyncio.ensure_future(deciding.decided(event))
        await asyncio.sleep(0)
        for events, commands in steps:
            deciding.observe(0, events, commands)
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            return None
        return task.result()

    return asyncio.run(run())


def test_the_change_that_was_begun_with_it_answers():
    told = decided(OUT, ([OUT], [replan(3)]), ([], [explain(3), Adopt(3, EMPTY)]))
    assert (told.told, told.is_adopted) == (explain(3), True)


def test_a_change_that_was_under_way_is_not_the_answer():
    under_way = ([], [explain(1), Adopt(1, EMPTY)])
    assert decided(OUT, ([OUT], []), under_way) is None
    assert decided(OUT, under_way, ([OUT], [])) is None
    told = decided(OUT, ([OUT], []), ([], [explain(1), Adopt(1, EMPTY), replan(2)]), ([], [explain(2)]))
    assert (told.told.number, told.is_adopted) == (2, False)


def test_what_is_asked_for_again_is_still_the_answer():
    assert decided(OUT, ([OUT], [replan(3)]), ([], [replan(4)]), ([], [explain(4)])).told.number == 4


def test_nothing_is_begun_once_the_plan_is_frozen():
    assert decided(OUT, ([OUT], []), ([], [explain(0, FROZEN)])).told.chosen == FROZEN
    assert decided(OUT, ([OUT], [replan(3)]), ([], [explain(0, FROZEN)])) is None, "that one goes on"


def test_a_forced_plan_has_the_negative_of_its_ticket():
    force = Force(7, EMPTY)
    assert decided(force, ([force], []), ([], [replan(1), explain(1)])) is None
    assert decided(force, ([force], []), ([], [explain(-7)])).told.number == -7


def test_a_server_that_stops_decides_nothing_more():
    with pytest.raises(RequestError, match="the server stops"):
        decided(OUT, ([OUT], []), ([Stopping()], []))


def until(holds, *, steps=1):
    async def run():
        deciding = Deciding(Live())
        task = asyncio.ensure_future(deciding.until(holds, 0.05))
        for _ in range(steps):
            await asyncio.sleep(0)
            deciding.observe(0, [], [])
        return await task

    return asyncio.run(run())


def test_what_is_waited_for_is_looked_at_after_each_step():
    looks = iter([False, False, True, True])
    assert until(lambda: next(looks), steps=2)
    assert until(lambda: True, steps=0)
    assert not until(lambda: False)
