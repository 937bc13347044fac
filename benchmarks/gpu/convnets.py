"""Convolutional networks in plain torch, layer by layer as published; `Scale` makes small ones of the same shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much thinner and shallower than published; the side of the image, and the tokens of a text."""

    thinner: int = 1
    shallower: int = 1
    image: int = 224
    tokens: int = 128

    def channels(self, published: int) -> int:
        """Of a layer."""
        return max(8, published // self.thinner)

    def repeats(self, published: int) -> int:
        """Of a block."""
        return -(-published // self.shallower)


FULL = Scale()
TINY = Scale(8, 6, 64, 16)


def normed(
    before: int,
    after: int,
    width: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(before, after, width, stride, width // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *([activation()] if activation else []))


class Classifier(nn.Module):
    """Mean over the map, then a matrix product."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.product = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.product(x.mean((2, 3))))


def lenet() -> nn.Module:
    """LeCun et al. 1998, 28 x 28 with padding; it is tiny as it is."""
    maps = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    products = [nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)]
    return nn.Sequential(*maps, nn.Flatten(), *products)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1, and the residual sum."""

    def __init__(self, before: int, middle: int, stride: int) -> None:
        super().__init__()
        after = 4 * middle
        last = normed(middle, after, activation=None)
        self.body = nn.Sequential(normed(before, middle), normed(middle, middle, 3, stride), last)
        is_same = stride == 1 and before == after
        self.skip = nn.Identity() if is_same else normed(before, after, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


def resnet50(scale: Scale) -> nn.Module:
    """He et al. 2016, the stride in the 3 x 3 convolution."""
    channels = scale.channels(64)
    layers: list[nn.Module] = [normed(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, published in enumerate((3, 4, 6, 3)):
        middle = scale.channels(64 << stage)
        for place in range(scale.repeats(published)):
            layers.append(Bottleneck(channels, middle, 2 if stage and not place else 1))
            channels = 4 * middle
    return nn.Sequential(*layers, Classifier(channels))


class Inverted(nn.Module):
    """Wider, depthwise, narrower; summed where nothing changes."""

    def __init__(self, before: int, after: int, stride: int, times: int) -> None:
        super().__init__()
        wide = before * times
        widen = [normed(before, wide, activation=nn.ReLU6)] if times > 1 else []
        depthwise = normed(wide, wide, 3, stride, wide, nn.ReLU6)
        self.body = nn.Sequential(*widen, depthwise, normed(wide, after, activation=None))
        self.is_summed = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = cast("Tensor", self.body(x))
        return x + y if self.is_summed else y


_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(scale: Scale) -> nn.Module:
    """Sandler et al. 2018."""
    channels = scale.channels(32)
    layers: list[nn.Module] = [normed(3, channels, 3, 2, activation=nn.ReLU6)]
    for times, published, repeats, stride in _INVERTED:
        after = scale.channels(published)
        for place in range(scale.repeats(repeats)):
            layers.append(Inverted(channels, after, 1 if place else stride, times))
            channels = after
    last = scale.channels(1280)
    return nn.Sequential(*layers, normed(channels, last, activation=nn.ReLU6), Classifier(last))


class Inception(nn.Module):
    """Four branches beside each other; the third is 3 x 3, as in the weights that everybody has."""

    def __init__(self, before: int, widths: Sequence[int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.one = normed(before, one)
        self.three = nn.Sequential(normed(before, three_in), normed(three_in, three, 3))
        self.five = nn.Sequential(normed(before, five_in), normed(five_in, five, 3))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), normed(before, pooled))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


_POOLED = ()
_INCEPTIONS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    _POOLED,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    _POOLED,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def googlenet(scale: Scale) -> nn.Module:
    """Szegedy et al. 2015 with batch norm, without the auxiliary classifiers that only training has."""
    first, channels = scale.channels(64), scale.channels(192)
    layers: list[nn.Module] = [
        normed(3, first, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        normed(first, first),
        normed(first, channels, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]
    for published in _INCEPTIONS:
        if not published:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            continue
        widths = [scale.channels(n) for n in published]
        layers.append(Inception(channels, widths))
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return nn.Sequential(*layers, Classifier(channels))


class DenseLayer(nn.Module):
    """Norm before convolution, and what came in kept beside what comes out."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        last = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU(), normed(before, 4 * growth), last)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(scale: Scale) -> nn.Module:
    """Huang et al. 2017."""
    growth = scale.channels(32)
    channels = 2 * growth
    layers: list[nn.Module] = [normed(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    blocks = (6, 12, 24, 16)
    for stage, published in enumerate(blocks):
        for _ in range(scale.repeats(published)):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < len(blocks) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, Classifier(channels))


def vgg(scale: Scale, blocks: Sequence[int]) -> nn.Module:
    """Simonyan and Zisserman 2015: so many convolutions in each block."""
    layers: list[nn.Module] = []
    channels = 3
    for published, count in zip((64, 128, 256, 512, 512), blocks, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, scale.channels(published), 3, padding=1), nn.ReLU()]
            channels = scale.channels(published)
        layers.append(nn.MaxPool2d(2))
    wide = scale.channels(4096)
    products = [nn.Linear(49 * channels, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, CLASSES)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *products)


class Ssd(nn.Module):
    """MobileNet v1 with six maps of boxes: all of them come out, in a number that is always the same."""

    KINDS = 91

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        widths = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5)
        stem, channels = _separable(scale, scale.channels(32), widths)
        self.near = nn.Sequential(normed(3, scale.channels(32), 3, 2, activation=nn.ReLU6), *stem)
        stem, far = _separable(scale, channels, ((1024, 2), (1024, 1)))
        self.far = nn.Sequential(*stem)
        sizes, self.extras = [channels, far], nn.ModuleList()
        for published in (512, 256, 256, 128):
            narrow = normed(sizes[-1], scale.channels(published // 2), activation=nn.ReLU6)
            wide = normed(scale.channels(published // 2), scale.channels(published), 3, 2, activation=nn.ReLU6)
            self.extras.append(nn.Sequential(narrow, wide))
            sizes.append(scale.channels(published))
        anchors = [3, *[6] * 5]
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * n, 1) for c, n in zip(sizes, anchors, strict=True))
        self.kinds = nn.ModuleList(nn.Conv2d(c, self.KINDS * n, 1) for c, n in zip(sizes, anchors, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.near(x)]
        maps.append(self.far(maps[-1]))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return _flat(self.boxes, maps, 4), _flat(self.kinds, maps, self.KINDS)


def _separable(scale: Scale, channels: int, layers: Sequence[tuple[int, int]]) -> tuple[list[nn.Module], int]:
    """Depthwise, then 1 x 1; and the channels behind them."""
    found: list[nn.Module] = []
    for published, stride in layers:
        found.append(normed(channels, channels, 3, stride, channels, nn.ReLU6))
        found.append(normed(channels, scale.channels(published), activation=nn.ReLU6))
        channels = scale.channels(published)
    return found, channels


def _flat(heads: nn.ModuleList, maps: Sequence[Tensor], values: int) -> Tensor:
    found = (head(each).permute(0, 2, 3, 1).flatten(1) for head, each in zip(heads, maps, strict=True))
    return torch.cat(list(found), 1).unflatten(1, (-1, values))
