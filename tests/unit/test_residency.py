"""Loads and unloads by name, by memory and by idleness, over a loader that only notes what it is asked."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from gpulet.api.control import ReadOnly, State
from gpulet.core.messages import Arrived, Closed, Opened
from gpulet.drivers.door import Door
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import ModelError, RequestError, Unusable
from gpulet.executors.base import Signature
from gpulet.executors.wire import WorkerModel
from gpulet.request import Request
from gpulet.residency import Residency, Surroundings
from gpulet.roster import Found, Rules
from gpulet.units import MIB, MS, SECOND

SIGNATURE = Signature((), ())


class Notes:
    """A loader of imaginary models: `bad` names cannot be loaded, `gate` holds every change up."""

    def __init__(self, wanted, sizes):
        self.sizes = sizes
        self.signatures = dict.fromkeys(wanted, SIGNATURE)
        self.refused = {}
        self.bad = {}
        self.brought = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def bring(self, wanted):
        await self.gate.wait()
        self.brought.append(tuple(sorted(wanted)))
        for name in wanted:
            if name in self.bad:
                raise self.bad[name]
        self.signatures.update(dict.fromkeys(wanted, SIGNATURE))

    def forgive(self, model):
        self.refused.pop(model, None)

    def bytes_of(self, model):
        return self.sizes.get(model, 0)


class World:
    """A residency of models a, b, c of 10 MiB each, and what the core would have heard of it."""

    def __init__(self, names, rules, start):
        self.events = []
        self.told = []
        self.held = set()
        self.asked = dict.fromkeys(names, 0)
        self.versions = dict.fromkeys(names, "1")
        self.timer = LiveTimer(asyncio.get_running_loop())
        self.door = Door(self.timer, self.events.append)
        around = Surroundings(
            self.timer,
            self.door,
            self.held.__contains__,
            self.asked.__getitem__,
            self.find,
            lambda name, version: self.told.append((name, version)),
            lambda event, **fields: self.told.append((event, fields)),
        )
        self.residency = Residency({name: self.find(name) for name in names}, rules, around, start)
        self.loader = Notes(self.residency.wanted, dict.fromkeys(names, 10 * MIB))
        self.residency.attach(self.loader)
        self.residency.begin()
        self.count = 0

    def find(self, name):
        version = self.versions[name]
        if not version:
            msg = "no version is available"
            raise ModelError(msg)
        return Found(version, WorkerModel(name, f"{name}/{version}", 4, digest=f"{name}{version}"), 10 * MIB)

    def states(self):
        return {row.name: row.state for row in self.residency.index()}

    async def put_to_sleep(self, name):
        """As for being idle, at once."""
        self.states()
        await self.residency._take_off((name,), "idle", sleeps=True)  # noqa: SLF001

    def keep(self, model, *, hard=False, slo=SECOND):
        self.count += 1
        now = self.timer.now()
        self.door.keep(Request(self.count, model, now, now + slo, hard=hard))
        return self.count

    def arrived(self):
        return [event.request.id for event in self.events if isinstance(event, Arrived)]

    async def soon(self, holds):
        for _ in range(500):
            if holds():
                return
            await asyncio.sleep(0.01)
        pytest.fail("it did not come about in 5 s")


@asynccontextmanager
async def world(names="abc", rules=None, start=None):
    made = World(names, rules or Rules(), start)
    try:
        yield made
    finally:
        await made.residency.close()
        made.timer.close()


def test_a_model_that_is_unloaded_is_closed_before_it_leaves_and_open_once_it_is_back():
    async def run():
        async with world() as w:
            w.loader.gate.clear()
            leaving = asyncio.ensure_future(w.residency.unload("b"))
            await w.soon(lambda: w.states()["b"] is State.UNLOADING)
            assert w.events == [Closed("b"), Closed("b")]
            w.loader.gate.set()
            await leaving
            assert w.loader.brought == [("a", "c")]
            assert w.states() == {"a": State.READY, "b": State.UNAVAILABLE, "c": State.READY}
            await w.residency.load("b")
            assert w.events[-1] == Opened("b")
            assert w.loader.brought[-1] == ("a", "b", "c")
            assert [row.name for row in w.residency.index(ready=True)] == ["a", "b", "c"]

    asyncio.run(run())


def test_what_waits_for_a_model_is_answered_before_it_leaves_unless_it_takes_too_long():
    async def run():
        async with world(rules=Rules(patience=300 * MS)) as w:
            w.held.add("b")
            leaving = asyncio.ensure_future(w.residency.unload("b"))
            await w.soon(lambda: w.states()["b"] is State.UNLOADING)
            assert not w.loader.brought
            w.held.clear()
            await leaving
            w.held.add("c")
            await w.residency.unload("c")
            assert "unload_incomplete" in [event for event, _ in w.told]
            assert w.loader.brought == [("a", "c"), ("a",)]

    asyncio.run(run())


def test_two_who_ask_for_the_same_load_wait_for_one_and_another_model_waits_its_turn():
    async def run():
        async with world(start=()) as w:
            await asyncio.gather(*map(w.residency.load, "aabb"))
            assert w.loader.brought == [("a",), ("a", "b")]

    asyncio.run(run())


def test_a_load_of_what_is_loaded_does_nothing_until_its_file_changes():
    async def run():
        async with world() as w:
            await w.residency.load("a")
            assert not w.loader.brought
            w.versions["a"] = "2"
            await w.residency.load("a")
            assert w.loader.brought == [("a", "b", "c")]
            assert w.residency.index()[0].version == "2"
            assert ("a", "2") in w.told

    asyncio.run(run())


def test_a_broken_new_file_leaves_the_old_one_serving_and_says_why():
    async def run():
        async with world() as w:
            w.versions["a"], w.loader.bad["a"] = "2", ModelError("model a: not ONNX")
            with pytest.raises(RequestError, match="failed to load 'a', not ONNX"):
                await w.residency.load("a")
            assert w.states()["a"] is State.READY
            assert w.residency.index()[0].version == "1"
            assert w.residency.wanted["a"].path == "a/1"
            assert Closed("a") not in w.events
            assert not w.loader.refused

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_refused_by_name_until_it_can():
    async def run():
        async with world(start="bc") as w:
            w.loader.bad["a"] = ModelError("model a: not ONNX")
            with pytest.raises(RequestError, match="not ONNX"):
                await w.residency.load("a")
            assert w.loader.refused == {"a": "not ONNX"}
            assert w.residency.index()[0].reason == "not ONNX"
            del w.loader.bad["a"]
            await w.residency.load("a")
            assert not w.loader.refused
            assert w.states()["a"] is State.READY

    asyncio.run(run())


def test_models_that_workers_refuse_later_are_not_given_again():
    async def run():
        async with world() as w:
            w.loader.refused["a"] = "quarantined"
            assert w.states()["a"] is State.UNAVAILABLE
            assert Closed("a") in w.events
            await w.residency.unload("b")
            assert w.loader.brought == [("c",)]

    asyncio.run(run())


def test_unknown_models_are_refused_in_tritons_words_and_vanished_ones_too():
    async def run():
        async with world() as w:
            with pytest.raises(RequestError, match="failed to load 'x', no version is available"):
                await w.residency.load("x")
            with pytest.raises(RequestError, match="failed to unload 'x'"):
                await w.residency.unload("x")
            w.versions["a"] = ""
            with pytest.raises(RequestError, match="failed to load 'a', no version is available") as refused:
                await w.residency.load("a")
            assert refused.value.status == 400
            assert w.states()["a"] is State.READY

    asyncio.run(run())


def test_where_control_is_not_explicit_models_are_listed_only():
    async def run():
        async with world() as w:
            control = ReadOnly(w.residency)
            assert len(control.index()) == 3
            for call in (control.load, control.unload):
                with pytest.raises(RequestError, match="not allowed if polling is enabled"):
                    await call("a")

    asyncio.run(run())


def test_a_load_that_does_not_fit_unloads_who_was_not_used_longest_and_never_who_is_pinned():
    async def run():
        rules = Rules(memory=30 * MIB, pinned=frozenset("a"))
        async with world("abcd", rules, start="abc") as w:
            w.states()
            w.asked["b"] += 1
            await asyncio.sleep(0.02)
            await w.residency.load("d")
            assert w.loader.brought == [("a", "b"), ("a", "b", "d")]
            assert w.states()["c"] is State.UNAVAILABLE
            assert "c" in w.door.asleep

    asyncio.run(run())


def test_a_load_that_cannot_fit_is_refused_with_the_numbers_and_nobody_leaves():
    async def run():
        rules = Rules(memory=30 * MIB, pinned=frozenset("a"))
        async with world("abcd", rules, start="abc") as w:
            w.states()
            w.held |= {"b", "c"}
            with pytest.raises(RequestError, match=r"takes 10 of 30 MiB, the others hold 30.*10 are lacking"):
                await w.residency.load("d")
            assert not w.loader.brought

    asyncio.run(run())


def test_a_model_that_takes_more_than_was_expected_leaves_again_if_nobody_else_may():
    async def run():
        rules = Rules(memory=30 * MIB, pinned=frozenset("ab"))
        async with world("abc", rules, start="ab") as w:
            w.states()
            w.loader.sizes["c"] = 20 * MIB
            with pytest.raises(RequestError, match="takes 20 of 30 MiB"):
                await w.residency.load("c")
            assert w.states()["c"] is State.UNAVAILABLE
            assert w.loader.brought[-1] == ("a", "b")

    asyncio.run(run())


def test_what_does_not_fit_at_the_start_sleeps():
    async def run():
        async with world("abc", Rules(memory=25 * MIB)) as w:
            assert set(w.residency.wanted) == {"a", "b"}
            assert w.door.asleep == {"c"}
            assert Closed("c") in w.events

    asyncio.run(run())


def test_an_idle_model_sleeps_and_the_next_request_loads_it_and_is_served_with_all_its_time():
    async def run():
        async with world(rules=Rules(idle=200 * MS, pinned=frozenset("ab"))) as w:
            w.states()
            await w.soon(lambda: w.states()["c"] is State.UNAVAILABLE)
            assert w.door.asleep == {"c"}
            w.loader.gate.clear()
            due = w.timer.now() + 50 * MS
            number = w.keep("c", slo=50 * MS)
            await w.soon(lambda: w.timer.now() > due)
            w.loader.gate.set()
            await w.soon(lambda: w.arrived() == [number])
            assert w.events.index(Opened("c")) < len(w.events) - 1
            assert w.events[-1].request.deadline > w.timer.now() - 500 * MS
            assert w.events[-1].request.deadline > due

    asyncio.run(run())


def test_a_request_waits_at_the_door_no_longer_than_its_own_deadline_or_our_patience():
    async def run():
        async with world() as w:
            await w.put_to_sleep("c")
            w.loader.gate.clear()
            w.door.patience = 100 * MS
            hard, soft = w.keep("c", hard=True, slo=20 * MS), w.keep("c", slo=SECOND)
            await w.soon(lambda: w.arrived() == [hard])
            await w.soon(lambda: w.arrived() == [hard, soft])
            w.loader.gate.set()

    asyncio.run(run())


def test_no_more_wait_at_the_door_than_are_let_in():
    async def run():
        async with world() as w:
            await w.put_to_sleep("c")
            w.loader.gate.clear()
            w.door.most = 1
            w.keep("c")
            assert w.arrived() == []
            number = w.keep("c")
            assert w.arrived() == [number]
            w.loader.gate.set()

    asyncio.run(run())


def test_who_waits_is_refused_when_the_load_fails_and_the_model_sleeps_on():
    async def run():
        async with world() as w:
            await w.put_to_sleep("c")
            w.loader.bad["c"] = Unusable("its worker died")
            number = w.keep("c")
            await w.soon(lambda: w.arrived() == [number])
            assert "c" in w.door.asleep
            assert Opened("c") not in w.events
            assert w.states()["c"] is State.UNAVAILABLE

    asyncio.run(run())


def test_a_server_that_stops_ends_a_load_and_leaves_nobody_waiting():
    async def run():
        async with world(start="ab") as w:
            w.loader.gate.clear()
            w.door.close("c", sleeps=True)
            number = w.keep("c")
            asked = asyncio.ensure_future(w.residency.load("c"))
            await w.soon(lambda: w.states()["c"] is State.LOADING)
            await w.residency.close()
            with pytest.raises(RequestError, match="the server stops"):
                await asked
            assert w.arrived() == [number]

    asyncio.run(run())


def test_a_load_of_what_workers_are_just_starting_with_waits_for_them():
    async def run():
        async with world() as w:
            w.loader.signatures.clear()
            asked = asyncio.ensure_future(w.residency.load("a"))
            await asyncio.sleep(0.05)
            assert not asked.done()
            w.loader.signatures["a"] = SIGNATURE
            await asked
            assert not w.loader.brought
            assert w.states()["b"] is State.LOADING

    asyncio.run(run())
