"""all-MiniLM-L6-v2: its graph, and sentences as it takes them."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from bundle import find
from encoder import Bert, sentence_encoder
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LONGEST: Final = 128
MINILM: Final = Bert(layers=6, heads=12)


def export(path: Path) -> None:
    """Write the encoder as ONNX."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(sentence_encoder(load_file(find("model.safetensors")), MINILM), path)


class Words:
    """Sentences to tokens: as many as there are, up to `LONGEST`."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(find("tokenizer.json")))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LONGEST)

    def tokens(self, sentence: str) -> dict[str, NDArray[Any]]:
        """The encoder's inputs, one row."""
        found = self._tokenizer.encode(sentence)
        parts = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return {name: np.array([values], np.int64) for name, values in parts.items()}
