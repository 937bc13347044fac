"""Transformers in plain torch: BERT, ViT, and an encoder like Conformer's."""

from typing import cast

import torch
from convnets import CLASSES, Scale
from torch import Tensor, nn
from torch.nn import functional

WORDS = 30522
LONGEST = 512
BANDS = 80
"""Mel bands of a spectrogram."""


class Attention(nn.Module):
    """Every token looks at every other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.inward(x).chunk(3, -1))
        seen = functional.scaled_dot_product_attention(q, k, v)
        return cast("Tensor", self.outward(seen.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and two matrix products; norms behind the sums (BERT) or before the layers (ViT)."""

    def __init__(self, width: int, heads: int, *, is_norm_first: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.products = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-6) for _ in range(2))
        self.is_norm_first = is_norm_first

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.norms
        if self.is_norm_first:
            x = x + self.attention(one(x))
            return cast("Tensor", x + self.products(two(x)))
        x = one(x + self.attention(x))
        return cast("Tensor", two(x + self.products(x)))


class Bert(nn.Module):
    """Devlin et al. 2019, base: ids of words in, the pooled first token out."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        width = scale.channels(768)
        heads = max(1, width // 64)
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Embedding(LONGEST, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, is_norm_first=False) for _ in range(scale.repeats(12))))
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places.weight[: ids.shape[1]]
        x = self.norm(self.words(ids) + places + self.kinds.weight[0])
        return torch.tanh(self.pooler(self.blocks(x)[:, 0]))


class Vit(nn.Module):
    """Dosovitskiy et al. 2021, B/16."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        width = scale.channels(768)
        heads = max(1, width // 64)
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (scale.image // 16) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, is_norm_first=True) for _ in range(scale.repeats(12))))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.product = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return cast("Tensor", self.product(self.norm(self.blocks(x)[:, 0])))


class Aside(nn.Module):
    """Conformer's convolution over time: gated, depthwise, gated again."""

    def __init__(self, width: int, reach: int = 31) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, reach, padding=reach // 2, groups=width)
        self.middle = nn.BatchNorm1d(width)
        self.last = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.glu(self.gate(self.norm(x).transpose(1, 2)), 1)
        return cast("Tensor", self.last(functional.silu(self.middle(self.depthwise(y)))).transpose(1, 2))


class Sandwich(nn.Module):
    """Half a step of matrix products, attention, convolution, the other half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.after = (_half(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.aside = Aside(width)
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        x = x + self.attention(self.norm(x))
        x = x + self.aside(x)
        return cast("Tensor", self.last(x + 0.5 * self.after(x)))


def _half(width: int) -> nn.Module:
    products = [nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)]
    return nn.Sequential(nn.LayerNorm(width), *products)


class Conformer(nn.Module):
    """Like Gulati et al. 2020, S: 4 frames become one; absolute places instead of relative ones; words' scores at the end."""

    PIECES = 1024

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        width = scale.channels(144)
        heads = max(1, width // 36)
        self.shorter = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.inward = nn.Linear(width * BANDS // 4, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, scale.tokens, width))
        self.blocks = nn.Sequential(*(Sandwich(width, heads) for _ in range(scale.repeats(16))))
        self.product = nn.Linear(width, self.PIECES)

    def forward(self, bands: Tensor) -> Tensor:
        x = self.shorter(bands.unsqueeze(1)).transpose(1, 2).flatten(2)
        return cast("Tensor", self.product(self.blocks(self.inward(x) + self.places)))
