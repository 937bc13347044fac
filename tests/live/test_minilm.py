"""all-MiniLM-L6-v2 itself, where its package is installed (`make demo-text` does it)."""

import numpy as np
import onnxruntime as ort
import pytest
from bundle import find
from sentences import TRIPLES

from gpulet.errors import GpuletError

EXPECTED = {
    "A man is eating food.": (0.0332416, 0.004406, -0.006277, -0.0060868, 0.0197486, -0.0375643),
    "Two dogs run through tall grass towards the river, barking.": (
        *(0.058008, 0.0272681, 0.0678989),
        *(0.0302594, 0.0580349, 0.0291193),
    ),
}
"""Some places of the embeddings that PyTorch gives with transformers 5.23.0."""
PLACES = (0, 1, 2, 100, 200, 383)


@pytest.fixture(scope="module")
def minilm():
    for needed in ("tokenizers", "safetensors"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'gpulet[text]'")
    try:
        find("model.safetensors")
    except GpuletError as error:
        pytest.skip(str(error))
    import minilm  # noqa: PLC0415 (it needs what was looked for)

    return minilm


@pytest.fixture(scope="module")
def embed(minilm, tmp_path_factory):
    path = tmp_path_factory.mktemp("minilm") / "model.onnx"
    minilm.export(path)
    session, words = ort.InferenceSession(path, providers=["CPUExecutionProvider"]), minilm.Words()

    def one(sentence, length=0):
        tokens = words.tokens(sentence)
        own = tokens["input_ids"].shape[1]
        inputs = {name: np.pad(row, ((0, 0), (0, max(0, length - own)))) for name, row in tokens.items()}
        return session.run(None, inputs)[0][0]

    return one


def test_embeddings_are_those_of_the_original(embed):
    for sentence, expected in EXPECTED.items():
        np.testing.assert_allclose(embed(sentence)[list(PLACES)], expected, atol=1e-6)


def test_padding_changes_nothing_and_related_sentences_are_closer(embed):
    for triple in TRIPLES:
        one, related, other = (embed(sentence) for sentence in triple)
        assert one @ related > one @ other + 0.3
        np.testing.assert_allclose(embed(triple[0], 128), one, atol=1e-6)
