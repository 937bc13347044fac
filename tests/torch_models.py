"""Small PyTorch models as files. Imported where they are used: PyTorch takes a second to import."""

import json
import warnings
from pathlib import Path

import torch
from torch.export import Dim

ROWS = Dim("rows", min=1)
LENGTH = Dim("length", min=1)


class Dense(torch.nn.Module):
    """[N, 4] to [N, 3], with a constant that is no weight."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.offset = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.layer(x) + self.offset


class Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image):
        return torch.relu(self.layer(image)).mean(dim=(2, 3))


class Pair(torch.nn.Module):
    """Two inputs with a free length each, outputs by name."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(2, 4)

    def forward(self, ids, mask):
        hidden = self.words(ids) * mask.unsqueeze(-1)
        return {"pooled": hidden.sum(1), "places": torch.arange(ids.shape[1], device=ids.device) + ids}


class Total(torch.nn.Module):
    """An output without rows."""

    def forward(self, x):
        return x * 2, x.sum()


class Broken(torch.nn.Module):
    """Gives infinities for zeros, NaN for what is below."""

    def forward(self, x):
        return torch.log(x)


class Found(torch.nn.Module):
    """As many rows as the data says: asks the GPU while it runs, which no capture survives."""

    def forward(self, x):
        return x.nonzero()


class Wide(torch.nn.Module):
    """GEMMs that fill a GPU, which libraries choose kernels for."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, dtype=torch.float16) for _ in range(4)))

    def forward(self, x):
        return self.layers(x)


def seeded(make):
    torch.manual_seed(1)
    return make().eval()


def export(folder, name, model, inputs, dynamic):
    path = Path(folder) / f"{name}.pt2"
    torch.export.save(torch.export.export(model, inputs, dynamic_shapes=dynamic), path)
    return str(path)


def export_all(folder):
    """Path by name."""
    ids = torch.ones(2, 5, dtype=torch.int64)
    half = torch.nn.Linear(4, 2).half().eval()
    return {
        "dense": export(folder, "dense", seeded(Dense), (torch.ones(2, 4),), ({0: ROWS},)),
        "conv": export(folder, "conv", seeded(Conv), (torch.ones(2, 3, 8, 8),), ({0: ROWS},)),
        "pair": export(
            folder, "pair", seeded(Pair), (ids, torch.ones(2, 5)), ({0: ROWS, 1: LENGTH}, {0: ROWS, 1: LENGTH})
        ),
        "half": export(folder, "half", half, (torch.ones(2, 4).half(),), ({0: ROWS},)),
        "total": export(folder, "total", Total(), (torch.ones(2, 4),), ({0: ROWS},)),
        "fixed": export(folder, "fixed", seeded(Dense), (torch.ones(1, 4),), None),
        "broken": export(folder, "broken", Broken(), (torch.ones(2, 4),), ({0: ROWS},)),
    }


def export_for_gpu(folder):
    """As `export_all`, with what only a GPU shows."""
    wide = export(folder, "wide", seeded(Wide), (torch.ones(2, 2048).half(),), ({0: ROWS},))
    found = export(folder, "found", Found(), (torch.ones(2, 4),), None)
    return {**export_all(folder), "wide": wide, "found": found}


def script(folder, name, sidecar):
    """A TorchScript file alone in its folder, with its `signature.json` unless that is None."""
    folder = Path(folder) / name
    folder.mkdir()
    with warnings.catch_warnings():
        # deprecated in favour of torch.export, and still what people have
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        torch.jit.trace(seeded(Dense), torch.ones(2, 4)).save(str(folder / "model.pt"))
    if sidecar is not None:
        (folder / "signature.json").write_text(json.dumps(sidecar))
    return str(folder / "model.pt")


SIDECAR = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
}
