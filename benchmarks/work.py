"""What one row of a model asks, counted from its published layer shapes: where the numbers of `roofline/works.py` come from.

Prints GFLOP, millions of parameters, millions of elements read and written, kernels. Convolutions and matrix products count
with batch norm and activation fused; residual sums are read once more; a concatenation is written in place; DenseNet's norms
before a convolution cannot be folded into it and are kernels of their own.
"""

from dataclasses import dataclass
from itertools import pairwise

from gpulet.roofline import Work


@dataclass
class Net:
    """A network as it grows: channels and side of the feature map, and what all layers so far add up to."""

    channels: int
    side: int
    products: int = 0
    weights: int = 0
    moved: int = 0
    kernels: int = 0

    @property
    def map(self) -> tuple[int, int]:
        """What the next layer reads."""
        return self.channels, self.side

    @property
    def area(self) -> int:
        """Elements of the feature map."""
        return self.channels * self.side**2

    def aside(
        self, source: tuple[int, int], out: int, width: int, stride: int = 1, groups: int = 1, pad: int = -1
    ) -> tuple[int, int]:
        """A convolution on a branch; the main line stays where it is."""
        channels, side = source
        pad = width // 2 if pad < 0 else pad
        after = (side + 2 * pad - width) // stride + 1
        size = out * (channels // groups) * width**2
        self._add(after**2 * size, size + out, channels * side**2 + out * after**2)
        return out, after

    def conv(self, out: int, width: int, stride: int = 1, groups: int = 1, pad: int = -1) -> None:
        """A convolution of the main line."""
        self.channels, self.side = self.aside(self.map, out, width, stride, groups, pad)

    def pool(self, width: int, stride: int, pad: int = 0, *, is_ceil: bool = False) -> None:
        """A pooling."""
        before, room = self.area, self.side + 2 * pad - width
        self.side = (-(-room // stride) if is_ceil else room // stride) + 1
        self._add(0, 0, before + self.area)

    def dense(self, *sizes: int) -> None:
        """Matrix products one after the other."""
        for a, b in pairwise(sizes):
            self._add(a * b, a * b + b, a + b)

    def _add(self, products: int, weights: int, moved: int) -> None:
        self.products += products
        self.weights += weights
        self.moved += moved
        self.kernels += 1

    def work(self) -> Work:
        """The sums."""
        return Work(2.0 * self.products, self.weights, self.moved, self.kernels, "counted")


def alexnet() -> Work:
    """Krizhevsky 2014, one column."""
    net = Net(3, 224)
    net.conv(64, 11, 4, pad=2)
    net.pool(3, 2)
    net.conv(192, 5)
    net.pool(3, 2)
    for out in (384, 256, 256):
        net.conv(out, 3)
    net.pool(3, 2)
    net.dense(9216, 4096, 4096, 1000)
    return net.work()


def vgg(*blocks: int) -> Work:
    """Simonyan and Zisserman 2015: so many convolutions in each block."""
    net = Net(3, 224)
    for out, count in zip((64, 128, 256, 512, 512), blocks, strict=True):
        for _ in range(count):
            net.conv(out, 3)
        net.pool(2, 2)
    net.dense(25088, 4096, 4096, 1000)
    return net.work()


def resnet(*blocks: int) -> Work:
    """He et al. 2016, bottlenecks; the stride is in the 3 x 3 convolution."""
    net = Net(3, 224)
    net.conv(64, 7, 2)
    net.pool(3, 2, 1)
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            source, out = net.map, 64 * 2**stage
            net.conv(out, 1)
            net.conv(out, 3, stride)
            net.conv(4 * out, 1)
            net.moved += net.area
            if not block:
                net.aside(source, 4 * out, 1, stride, pad=0)
    net.pool(7, 7)
    net.dense(2048, 1000)
    return net.work()


_INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet() -> Work:
    """Szegedy et al. 2015, with torchvision's 3 x 3 in place of 5 x 5, without the side classifiers."""
    net = Net(3, 224)
    net.conv(64, 7, 2)
    net.pool(3, 2, is_ceil=True)
    net.conv(64, 1)
    net.conv(192, 3)
    for width, group in zip((3, 3, 2), _INCEPTIONS, strict=True):
        net.pool(width, 2, is_ceil=True)
        for one, three_in, three, five_in, five, pooled in group:
            net.aside(net.map, one, 1)
            net.aside(net.aside(net.map, three_in, 1), three, 3)
            net.aside(net.aside(net.map, five_in, 1), five, 3)
            net.pool(3, 1, 1)
            net.aside(net.map, pooled, 1)
            net.channels = one + three + five + pooled
    net.pool(7, 7)
    net.dense(1024, 1000)
    return net.work()


def mobilenet_v2() -> Work:
    """Sandler et al. 2018, table 2: expansion, channels, blocks, stride."""
    net = Net(3, 224)
    net.conv(32, 3, 2)
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, out, blocks, first in table:
        for block in range(blocks):
            before, stride = net.channels, 1 if block else first
            if expansion > 1:
                net.conv(before * expansion, 1)
            net.conv(net.channels, 3, stride, net.channels)
            net.conv(out, 1)
            net.moved += net.area if (before, stride) == (out, 1) else 0
    net.conv(1280, 1)
    net.pool(7, 7)
    net.dense(1280, 1000)
    return net.work()


def densenet(*blocks: int) -> Work:
    """Huang et al. 2017, growth 32."""
    net = Net(3, 224)
    net.conv(64, 7, 2)
    net.pool(3, 2, 1)
    for number, count in enumerate(blocks):
        for _ in range(count):
            net.moved += 2 * net.area
            net.kernels += 1
            net.aside(net.aside(net.map, 128, 1), 32, 3)
            net.channels += 32
        if number < len(blocks) - 1:
            net.conv(net.channels // 2, 1)
            net.pool(2, 2)
    net.pool(7, 7)
    net.dense(net.channels, 1000)
    return net.work()


def ssd_mobilenet() -> Work:
    """MobileNet v1 at 300 x 300 with the SSD head of 91 classes, 1 x 1 predictors; without non-maximum suppression."""
    net = Net(3, 300)
    net.conv(32, 3, 2)
    maps = []
    table = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    for number, (out, stride) in enumerate(table, start=1):
        net.conv(net.channels, 3, stride, net.channels)
        net.conv(out, 1)
        maps += [net.map] if number in {11, 13} else []
    for inner, out in ((256, 512), (128, 256), (128, 256), (64, 128)):
        net.conv(inner, 1)
        net.conv(out, 3, 2)
        maps.append(net.map)
    for number, source in enumerate(maps):
        boxes = 6 if number else 3
        net.aside(source, boxes * 4, 1)
        net.aside(source, boxes * 91, 1)
    return net.work()


def transformer(layers: int, width: int, tokens: int, embeddings: int) -> Work:
    """Vaswani et al. 2017, encoder: 12 width^2 weights a layer, scores written and read twice.

    `embeddings` are rows of so many weights; another square of the width is the pooler, in ViT the patches' projection.
    """
    products = layers * (12 * width**2 * tokens + 2 * tokens**2 * width)
    weights = layers * (12 * width**2 + 13 * width) + embeddings * width + width**2
    moved = layers * (23 * tokens * width + 4 * (width // 64) * tokens**2)
    return Work(2.0 * products, weights, moved, 9 * layers + 3, "counted")


COUNTS = {
    "alexnet": alexnet(),
    "googlenet": googlenet(),
    "resnet50": resnet(3, 4, 6, 3),
    "resnet101": resnet(3, 4, 23, 3),
    "resnet152": resnet(3, 8, 36, 3),
    "ssd-mobilenetv1": ssd_mobilenet(),
    "vgg16": vgg(2, 2, 3, 3, 3),
    "vgg19": vgg(2, 2, 4, 4, 4),
    "mobilenet_v2": mobilenet_v2(),
    "densenet121": densenet(6, 12, 24, 16),
    "densenet169": densenet(6, 12, 32, 32),
    "densenet201": densenet(6, 12, 48, 32),
    "bert-base": transformer(12, 768, 128, 30522 + 512),
    "bert-large": transformer(24, 1024, 128, 30522 + 512),
    "vit_b_16": transformer(12, 768, 197, 197 + 1000),
}

if __name__ == "__main__":
    for name, work in COUNTS.items():
        sums = (work.flops / 1e9, work.weights / 1e6, work.activations / 1e6)
        print(
            f"{name:16} {sums[0]:6.2f} GFLOP {sums[1]:6.1f} M weights {sums[2]:6.1f} M moved {work.kernels:4d} kernels"
        )
