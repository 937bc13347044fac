"""The eleven models that are measured: random seeded weights, exported with a batch of any size.

    python benchmarks/gpu/models.py FOLDER [--tiny] [--dtype float16] [--models NAME,...]

writes `FOLDER/NAME/1/model.pt2` for each, the most wanted first, several at once; what is there already stays.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from attention import BANDS, Bert, Conformer, Vit
from convnets import FULL, TINY, Scale, Ssd, densenet121, googlenet, lenet, mobilenet_v2, resnet50, vgg
from torch import Tensor, nn

WORDS = 1000
"""Ids below this are drawn, whatever the vocabulary."""
EXPORTING = "exporting"
"""A file of this name lies in the folder while others may be waited for."""
LARGEST = 4096
"""Rows: more than anybody asks for, so that the size stays a symbol."""


@dataclass(frozen=True, slots=True)
class Known:
    """How to build a model, the shape of one row, and its element type: None is the one that is asked for."""

    build: Callable[[Scale], nn.Module]
    row: Callable[[Scale], tuple[int, ...]]
    weights: torch.dtype | None = None
    takes_ids: bool = False


def _image(scale: Scale) -> tuple[int, ...]:
    return (3, scale.image, scale.image)


def _larger_image(scale: Scale) -> tuple[int, ...]:
    side = 300 if scale == FULL else scale.image
    return (3, side, side)


MODELS: Mapping[str, Known] = {
    "resnet50": Known(resnet50, _image),
    "bert-base": Known(Bert, lambda scale: (scale.tokens,), takes_ids=True),
    "mobilenet_v2": Known(mobilenet_v2, _image),
    "vgg16": Known(lambda scale: vgg(scale, (2, 2, 3, 3, 3)), _image),
    "lenet": Known(lambda _: lenet(), lambda _: (1, 28, 28), torch.float32),
    "googlenet": Known(googlenet, _image),
    "ssd-mobilenetv1": Known(Ssd, _larger_image),
    "vit_b_16": Known(Vit, _image),
    "densenet121": Known(densenet121, _image),
    "vgg19": Known(lambda scale: vgg(scale, (2, 2, 4, 4, 4)), _image),
    "conformer": Known(Conformer, lambda scale: (4 * scale.tokens, BANDS)),
}
"""Most wanted first."""


def build(name: str, *, tiny: bool = False, dtype: torch.dtype = torch.float16) -> nn.Module:
    """A model with the same random weights every time, for inference."""
    known = MODELS[name]
    torch.manual_seed(1)
    model = known.build(TINY if tiny else FULL).eval().requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear):  # torch's own would fade to nothing in half precision
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    kind = known.weights or dtype
    return Cast(model.to(kind)) if kind is torch.bfloat16 else model.to(kind)


class Cast(nn.Module):
    """The inference protocol has no bfloat16 for tensors that we serve: single precision outside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.model(x.to(torch.bfloat16) if x.is_floating_point() else x)
        return tuple(y.float() for y in found) if isinstance(found, tuple) else found.float()


def example(name: str, rows: int, *, tiny: bool = False, dtype: torch.dtype = torch.float16, seed: int = 0) -> Tensor:
    """Its input. Each row's channels have a mean of their own: noise alone looks the same to a network, row by row."""
    known = MODELS[name]
    shape = (rows, *known.row(TINY if tiny else FULL))
    generator = torch.Generator().manual_seed(seed)
    if known.takes_ids:
        return torch.randint(0, WORDS, shape, generator=generator)
    kind = known.weights or dtype
    tint = torch.randn(*shape[:2], *(1 for _ in shape[2:]), generator=generator)
    drawn = torch.randn(shape, generator=generator) + 2 * tint
    return drawn.to(torch.float32 if kind is torch.bfloat16 else kind)


def place(name: str, folder: Path) -> Path:
    """Where a model lies in a repository of models."""
    return folder / name / "1" / "model.pt2"


def export(name: str, folder: Path, *, tiny: bool = False, dtype: torch.dtype = torch.float16) -> Path:
    """Write it, whole or not at all."""
    path = place(name, folder)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    model, given = build(name, tiny=tiny, dtype=dtype), example(name, 2, tiny=tiny, dtype=dtype)
    rows = torch.export.Dim("batch", min=1, max=LARGEST)
    with torch.no_grad():
        program = torch.export.export(model, (given,), dynamic_shapes=({0: rows},))
    unfinished = path.with_name(f"{os.getpid()}.pt2")
    torch.export.save(program, unfinished)
    unfinished.replace(path)
    return path


def export_all(names: Sequence[str], folder: Path, *, tiny: bool, dtype: torch.dtype, workers: int) -> None:
    """Several at once; the first ones first."""
    if workers < 2:  # noqa: PLR2004 (alone)
        for name in names:
            export(name, folder, tiny=tiny, dtype=dtype)
        return
    with ProcessPoolExecutor(workers) as pool:
        for done in [pool.submit(export, name, folder, tiny=tiny, dtype=dtype) for name in names]:
            done.result()


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(MODELS), metavar="NAME,...")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    a = parser.parse_args()
    torch.set_num_threads(2)
    marker = a.folder / EXPORTING
    try:
        export_all(a.models.split(","), a.folder, tiny=a.tiny, dtype=getattr(torch, a.dtype), workers=a.workers)
    finally:
        marker.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
