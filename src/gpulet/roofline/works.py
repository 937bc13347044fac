"""What one row of well-known models asks: counted from their published layer shapes by benchmarks/work.py, unless marked.

Counted: multiply-adds of convolutions and matrix products times two, parameters with batch norms folded, elements that each
kernel reads and writes (activations fused, branches joined in place), one kernel per convolution, product and pooling. The
multiply-adds of vgg19 and densenet121 are those that torchvision publishes as `_ops`: 19.632 and 2.834 G.
Inputs are 224 x 224 (SSD-MobileNet 300 x 300, Inception 299 x 299, LeNet 28 x 28).
"""

from collections.abc import Mapping

from gpulet.errors import ConfigError
from gpulet.roofline import Work

_G, _M = 1e9, 1e6
_COUNTED, _ESTIMATE = "counted from the layer shapes", "estimate"

WORKS: Mapping[str, Work] = {
    "lenet": Work(
        0.9e6, 0.06 * _M, 0.02 * _M, 7, "specification of this project, from memory; LeNet-5 of 1998 counted"
    ),
    "alexnet": Work(1.43 * _G, 61.1 * _M, 1.3 * _M, 11, _COUNTED),
    "googlenet": Work(3.0 * _G, 6.6 * _M, 12.2 * _M, 72, _COUNTED),
    "resnet50": Work(8.18 * _G, 25.5 * _M, 28.4 * _M, 56, _COUNTED),
    "resnet101": Work(15.6 * _G, 44.5 * _M, 42.1 * _M, 107, _COUNTED),
    "resnet152": Work(23.0 * _G, 60.1 * _M, 58.9 * _M, 158, _COUNTED),
    "ssd-mobilenetv1": Work(2.47 * _G, 6.8 * _M, 19.5 * _M, 47, f"{_COUNTED}, without the suppression of boxes"),
    "vgg16": Work(30.9 * _G, 138.4 * _M, 30.3 * _M, 21, _COUNTED),
    "vgg19": Work(39.3 * _G, 143.7 * _M, 32.9 * _M, 24, _COUNTED),
    "mobilenet_v2": Work(0.60 * _G, 3.5 * _M, 13.7 * _M, 54, _COUNTED),
    "densenet121": Work(5.67 * _G, 7.9 * _M, 42.0 * _M, 184, _COUNTED),
    "densenet169": Work(6.72 * _G, 14.0 * _M, 51.7 * _M, 256, _COUNTED),
    "densenet201": Work(8.58 * _G, 19.8 * _M, 68.4 * _M, 304, _COUNTED),
    "inceptionv3": Work(
        11.4 * _G, 23.8 * _M, 26 * _M, 120, f"5.7 G multiply-adds from memory; activations: {_ESTIMATE}"
    ),
    "bert-base": Work(22.4 * _G, 109.5 * _M, 36.6 * _M, 111, f"{_COUNTED}, 128 tokens"),
    "bert-large": Work(78.9 * _G, 335 * _M, 97.5 * _M, 219, f"{_COUNTED}, 128 tokens"),
    "vit_b_16": Work(34.9 * _G, 86.6 * _M, 64.1 * _M, 111, f"{_COUNTED}, 197 tokens"),
}
"""By the names that models are served under."""

ALIASES: Mapping[str, str] = {"mobilenetv2": "mobilenet_v2", "vision_transformer": "vit_b_16"}
"""Other spellings in published tables."""


def find_work(model: str, kind: str) -> Work:
    """The work of that model; raises `ConfigError` that says what to do for any other on device kind `kind`."""
    name = ALIASES.get(model, model)
    if name not in WORKS:
        msg = f"model {model} has no profile and its work is not on record, so its latency on a {kind} cannot be computed "
        msg += f"(known: {', '.join(WORKS)}); "
        msg += 'bring a table with `gpulet import-profile` and write profile = "FILE" under [[devices]]'
        raise ConfigError(msg)
    return WORKS[name]
