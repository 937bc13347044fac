"""Runs that bring a size of their own: aligned places, never two on one group, none waits for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.core.messages import Carve, Start
from gpulet.executors.cuda.buddies import MOST, Board, menus
from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver
from gpulet.executors.cuda.layout import lay_out

MODELS = ("a", "b", "c")


def layout(name="h200"):
    return lay_out(FakeCudaDriver(TOPOLOGIES[name]))


def run(batch, sms, model="a"):
    return Start(batch, Carve(0, sms), model, "", 1, (batch,))


@pytest.mark.parametrize(
    ("name", "sizes"), [("h200", [8, 16, 32, 64, 128]), ("a100", [8, 16, 32, 64]), ("t4", [8, 16, 32])]
)
def test_places_are_powers_of_two_of_groups_aligned_to_their_size(name, sizes):
    menu = menus(layout(name), MODELS)["b"]
    assert sorted({spot.sms for spot in menu}) == sizes
    assert all(spot.interval.start * 8 % spot.sms == 0 for spot in menu)
    assert all(sum(s.sms == size for s in menu) <= MOST for size in sizes)


def test_models_begin_with_other_places():
    offered = menus(layout(), MODELS)
    assert len({offered[model][0].interval for model in MODELS}) == 3


def test_a_size_between_two_gets_the_next_larger_place_and_one_beyond_all_the_largest():
    board = Board(menus(layout(), ("a",)))
    assert board.start(run(1, 24)).stop - board.running.__iter__().__next__().start == 4
    board.finish(1)
    whole = board.start(run(2, 132))
    assert (whole.start, whole.stop) == (0, 17)  # sixteen groups and the remainder


def test_a_run_whose_places_are_taken_waits_and_the_place_it_waits_for_is_kept():
    board = Board(menus(layout(), MODELS))
    assert board.start(run(1, 8)) is not None
    assert board.start(run(2, 128, "b")) is None
    assert board.start(run(3, 8, "c")) is None, "it would keep the large one waiting"
    ((second, interval),) = board.finish(1)
    assert (second.batch, interval.stop - interval.start) == (2, 17)
    assert [command.batch for command, _ in board.finish(2)] == [3]
    board.finish(3)
    assert board.is_idle


@given(st.data())
def test_no_two_runs_share_a_group_and_every_run_gets_its_turn(data):
    """As the core starts them: never more SMs at once than there are."""
    board = Board(menus(layout(data.draw(st.sampled_from(["h200", "h200-15", "a100", "t4"]))), MODELS))
    most = board.menus["a"][-1].sms
    free, running, waiting, begun, batch = most, {}, {}, set(), 0
    for _ in range(data.draw(st.integers(1, 40))):
        size = data.draw(st.sampled_from([8, 16, 24, 32, 64]).filter(lambda s: s <= most))
        if size <= free and data.draw(st.booleans()):
            batch += 1
            free -= size
            taken = board.start(run(batch, size, data.draw(st.sampled_from(MODELS))))
            (running if taken else waiting)[batch] = size
            begun |= {batch} if taken else set()
        elif running:
            ended = data.draw(st.sampled_from(sorted(running)))
            free += running.pop(ended)
            for command, _ in board.finish(ended):
                running[command.batch] = waiting.pop(command.batch)
                begun.add(command.batch)
        held = sorted(board.running, key=lambda i: i.start)
        assert len(held) == len(running)
        assert all(one.stop <= other.start for one, other in zip(held, held[1:], strict=False))
    while running:
        ended = min(running)
        running.pop(ended)
        for command, _ in board.finish(ended):
            running[command.batch] = waiting.pop(command.batch)
            begun.add(command.batch)
    assert not waiting
    assert begun == set(range(1, batch + 1))
    assert board.is_idle
