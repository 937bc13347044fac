"""
Train the two digit models of this example and write them beside this file.

Install `pip install torch scikit-learn onnx`, then run `python train.py`: some minutes on two cores.
The same seed, PyTorch build and machine type give the same files again.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SEED = 17
THREADS = 2
OPSET = 17
BRIGHTEST = 16.0  # the data's pixels are counts from 0 to 16
SIDE = 8
CLASSES = 10
ENLARGED = 8  # the large model looks at 64x64 pixels


@dataclass(frozen=True, slots=True)
class Split:
    """Raw images (K, 1, 8, 8) as float32 and their labels (K,) as int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how hard a model is trained."""

    epochs: int
    batch: int
    peak_rate: float


class Normalise(nn.Module):
    """Raw pixels 0..16 to -1..1, inside the graph so that clients send what they have."""

    def forward(self, image: Tensor) -> Tensor:
        return image * (2.0 / BRIGHTEST) - 1.0


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, figure 2)."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(channels, out, stride), nn.ReLU(), *convolution(out, out))
        is_same = channels == out and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def convolution(channels: int, out: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution and its batch norm, which the export folds into one node."""
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out)


def head(channels: int) -> tuple[nn.Module, ...]:
    """Average over the picture, then one logit a class."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def small() -> nn.Module:
    """Three convolutions on the 8x8 picture as it is."""
    return nn.Sequential(
        Normalise(),
        *convolution(1, 32),
        nn.ReLU(),
        *convolution(32, 64, stride=2),
        nn.ReLU(),
        *convolution(64, 64),
        nn.ReLU(),
        *head(64),
    )


def large() -> nn.Module:
    """A residual network on the enlarged picture: heavy on purpose, light in weights."""
    return nn.Sequential(
        Normalise(),
        nn.Upsample(scale_factor=ENLARGED, mode="bilinear", align_corners=False),
        *convolution(1, 64),
        nn.ReLU(),
        *(Residual(64, 64) for _ in range(4)),
        Residual(64, 128, stride=2),
        *(Residual(128, 128) for _ in range(2)),
        *head(128),
    )


RECIPES = {
    "digits-small": (small, Recipe(epochs=60, batch=64, peak_rate=5e-3)),
    "digits-large": (large, Recipe(epochs=8, batch=32, peak_rate=3e-3)),
}


def load_splits() -> tuple[Split, Split]:
    """Four fifths to train on, one fifth held out, each digit equally often in both."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    parts = train_test_split(images, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target)
    x, x_held, y, y_held = (torch.from_numpy(part) for part in parts)
    return Split(x, y.long()), Split(x_held, y_held.long())


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each picture by up to one pixel each way; what comes in at the edge is blank."""
    padded = functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images), 1, 1), generator=generator)
    line = torch.arange(SIDE)
    rows, columns = down + line[:, None], right + line
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def train(model: nn.Module, split: Split, recipe: Recipe) -> None:
    """Adam with a one-cycle learning rate; the last, small batch of an epoch is left out."""
    generator = torch.Generator().manual_seed(SEED)
    steps = len(split.labels) // recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, epochs=recipe.epochs, steps_per_epoch=steps
    )
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(split.labels), generator=generator)
        for chosen in order.split(recipe.batch)[:steps]:
            with torch.autocast("cpu", torch.bfloat16):  # halves the time of the large model
                logits = model(shift(split.images[chosen], generator))
            labels = split.labels[chosen]
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of pictures whose highest logit is their label's."""
    with torch.inference_mode():
        guesses = torch.cat([model(part).argmax(1) for part in split.images.split(64)])
    return float((guesses == split.labels).double().mean())


def export(model: nn.Module, path: Path) -> None:
    """One file: weights inside, batch dimension free, nothing in it about this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the new exporter needs onnxscript
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, SIDE, SIDE),),
            path,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )
    strip(path)


def strip(path: Path) -> None:
    """Check the file and leave out what does not compute: notes, traces, inner shapes."""
    proto = onnx.load(path)
    proto.ClearField("metadata_props")
    proto.graph.ClearField("value_info")
    for item in (proto, proto.graph, *proto.graph.node):
        item.ClearField("doc_string")
    for node in proto.graph.node:
        node.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    """Write the held-out split and both models, and say how good they are."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(mode=True)
    training, held_out = load_splits()
    np.savez_compressed(
        HERE / "heldout.npz",
        images=held_out.images.numpy(),
        labels=held_out.labels.numpy().astype(np.uint8),
    )
    for name, (build, recipe) in RECIPES.items():
        torch.manual_seed(SEED)
        model = build()
        train(model, training, recipe)
        export(model, HERE / "models" / name / "1" / "model.onnx")
        weights = sum(p.numel() for p in model.parameters())
        share = accuracy(model, held_out)
        sys.stdout.write(f"{name}: {share:.2%} of held-out digits, {weights} parameters\n")


if __name__ == "__main__":
    main()
