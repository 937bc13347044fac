"""Temporal round robin over the mixes of D-STACK's models (V100, batches of 16, queues never empty), by calculation.

Latencies on the whole GPU are 5/6 of those at the knee: Mobilenet 10 ms, Alexnet 8, ResNet-50 28, VGG-19 55.
"""

import pytest

from gpulet.core.messages import Start
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism
from gpulet.dispatchers.temporal import Temporal
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Size, Turn
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND
from support import SMS, TINY, World, requests_of

AT_KNEE = {"mobilenet": 10, "alexnet": 8, "resnet50": 28, "vgg19": 55}


@pytest.mark.parametrize(
    ("names", "cycle_ms", "total"),
    [(("alexnet", "resnet50", "vgg19"), 75.8, 633), (("mobilenet", "alexnet", "resnet50", "vgg19"), 84.2, 760)],
)
def test_round_robin_gives_every_model_as_many_images(names, cycle_ms, total):
    points = [Point(name, SMS, rows, *[AT_KNEE[name] * MS * 5 // 6] * 3) for name in names for rows in (1, 16)]
    models = [Model(name, 10 * SECOND, 16) for name in names]
    # Slices of nothing: one batch each.
    gpulet = Gpulet(0, 0, Size(SMS, 100.0), 0, 0, tuple(Turn(name, 16, 1.0, MS) for name in names))
    plan = Plan((Device(0, TINY, Mechanism.GREEN),), (gpulet,))
    world = World(models, plan, Temporal, Limits(early_drop=False), profile=Profile(tuple(points)))
    world.run(requests_of([(0, m, 16, "", 0, False) for m in range(len(names)) for _ in range(10)], models))
    starts = [(now, c) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]
    assert [c.model for _, c in starts] == [*names] * 10
    length = starts[len(names)][0] - starts[0][0]
    assert length / MS == pytest.approx(cycle_ms, abs=0.05)
    assert 16 * len(names) * SECOND / length == pytest.approx(total, abs=0.5)
