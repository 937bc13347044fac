"""Clockwork never starts a batch that will be late by its own prediction, right or wrong, and only where a model is."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Load, Loaded, Start, Unload
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism
from gpulet.dispatchers.clockwork import CONTROL, Clockwork
from gpulet.plan import Plan, Resident
from gpulet.units import MS
from support import SMS, TINY, World, models_of, requests_of, tiny_profile

NAMES = ["m0", "m1", "m2"]
arrival = st.tuples(
    st.integers(0, 60).map(lambda n: n * MS),
    st.integers(0, 2),
    st.integers(1, 8),
    st.sampled_from(["", "", "7"]),
    st.sampled_from([0, 0, 1]),
    st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(arrival, max_size=60),
    devices=st.integers(1, 2),
    base=st.integers(0, 6),
    per_row=st.integers(1, 4),
    slo=st.integers(6, 60),
    memory=st.sampled_from([0, 30, 40, 60]),
    early_drop=st.booleans(),
)
def test_nothing_starts_late_by_its_own_prediction(arrivals, devices, base, per_row, slo, memory, early_drop):
    models = models_of(3, slo=slo * MS, memory=memory)
    plan = Plan(tuple(Device(d, TINY, Mechanism.WHOLE) for d in range(devices)), residents=(Resident(0, "m0", memory),))
    believed = tiny_profile(NAMES, base=base * MS // 2, per_row=per_row * MS // 2)

    def make(problem, plan):
        return Clockwork(replace(problem, profile=believed), plan)

    world = World(models, plan, make, Limits(early_drop=early_drop))
    requests = requests_of(arrivals, models)
    world.run(requests)
    due = {request.id: request.deadline for request in requests}
    resident = {(0, "m0")}
    for now, events, commands in world.steps:
        resident |= {(e.device, e.model) for e in events if isinstance(e, Loaded)}
        for command in commands:
            match command:
                case Start():
                    assert now + command.expected <= min(due[n] for n in command.requests) - CONTROL.safety
                    assert command.on.size == SMS
                    assert (command.on.device, command.model) in resident
                case Unload():
                    resident.remove((command.device, command.model))
                case Load():
                    assert (command.device, command.model) not in resident
