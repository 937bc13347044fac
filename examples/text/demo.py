"""Serve a real sentence encoder with buckets of 16, 32, 64 and 128 tokens, and check every answer.

Ends 0 when sentences of all lengths, sent at once, got the embeddings that they get alone and unpadded, in fewer batches than
there were requests, and related sentences are closer than unrelated ones; 3 where something is not installed.
"""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from bundle import CHECKSUMS, find
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sentences import TRIPLES

from gpulet.errors import Unusable

NAME: Final = "minilm"
BUCKETS: Final = (16, 32, 64, 128)
FLEET: Final = f"""
[[devices]]
kind = "cpu"

[[models]]
name = "{NAME}"
slo_ms = 4000
rate = 5
max_batch = 4
shapes = {json.dumps([str(n) for n in BUCKETS])}
pad = true   # shapes are buckets; the model masks what is padded

[server]
repository = "models"
http_port = 0
metrics_port = 0
log_format = "json"
"""
SENDERS: Final = 16
ROUNDS: Final = 3
TOLERANCE: Final = 1e-5
out = Console()

Tokens = Mapping[str, NDArray[Any]]
Embedding = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Running:
    """Where a server answers."""

    url: str
    metrics: str

    def embed(self, tokens: Tokens) -> Embedding:
        """The embedding of one sentence, with binary data both ways."""
        parts = [array.tobytes() for array in tokens.values()]
        inputs = [
            {"name": n, "shape": a.shape, "datatype": "INT64", "parameters": {"binary_data_size": a.nbytes}}
            for n, a in tokens.items()
        ]
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        request = urllib.request.Request(f"{self.url}/v2/models/{NAME}/infer", header + b"".join(parts))  # noqa: S310
        request.add_header("Inference-Header-Content-Length", str(len(header)))
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (our own server)
            body = answer.read()
            return np.frombuffer(body, np.float32, offset=int(answer.headers["Inference-Header-Content-Length"]))

    def batches(self) -> int:
        """How many have run so far."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:  # noqa: S310 (our own server)
            lines = answer.read().decode().splitlines()
        return round(sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_exec_count{")))


@contextmanager
def served(fleet: Path) -> Iterator[Running]:
    """`gpulet serve` until the block ends."""
    command = [sys.executable, "-m", "gpulet.cli", "serve", str(fleet)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 (our own command)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "ready":
                yield Running(event["url"], event["metrics"])
                return
        msg = "the server did not become ready"
        raise Unusable(msg)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def alone(model: Path) -> Callable[[Tokens], Embedding]:
    """The model without a server: one sentence at a time, as long as it is."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def embed(tokens: Tokens) -> Embedding:
        found: Embedding = session.run(None, dict(tokens))[0][0]
        return found

    return embed


def show_answers(asked: Sequence[Tokens], answers: Sequence[Embedding], expected: Sequence[Embedding]) -> bool:
    """How far the answers of each bucket are from those of a batch of one; whether that is near enough."""
    table = Table(title="Embeddings served in padded batches, against batches of one without padding")
    for name in ("bucket", "requests", "tokens", "largest difference"):
        table.add_column(name, justify="right")
    lengths = [tokens["input_ids"].shape[1] for tokens in asked]
    errors = [float(abs(a - e).max()) for a, e in zip(answers, expected, strict=True)]
    for least, bucket in zip((0, *BUCKETS), BUCKETS, strict=False):
        here = [(n, error) for n, error in zip(lengths, errors, strict=True) if least < n <= bucket]
        if here:
            tokens = f"{min(here)[0]} to {max(here)[0]}"
            table.add_row(str(bucket), str(len(here)), tokens, f"{max(error for _, error in here):.1e}")
    out.print(table)
    return max(errors) < TOLERANCE


def show_neighbours(answers: Sequence[Embedding]) -> bool:
    """Cosines of related and of unrelated sentences; whether the related are closer, each time."""
    table = Table(title="Cosines")
    for name in ("sentence", "with a related one", "with an unrelated one"):
        table.add_column(name, justify="left" if name == "sentence" else "right")
    found = []
    for place, (sentence, _, _) in enumerate(TRIPLES):
        one, related, other = answers[3 * place : 3 * place + 3]
        found.append((float(one @ related), float(one @ other)))
        table.add_row(f"{sentence[:24]}...", *(f"{cosine:.2f}" for cosine in found[-1]))
    out.print(table)
    return all(related > other for related, other in found)


def story(folder: Path) -> bool:
    """Export, profile, serve, ask, compare; whether all is as it must be."""
    from minilm import Words, export  # noqa: PLC0415 (what is missing is told, not raised)

    model = folder / "models" / NAME / "1" / "model.onnx"
    out.rule("all-MiniLM-L6-v2 from its safetensors to ONNX")
    export(model)
    fleet = folder / "gpulet.toml"
    fleet.write_text(FLEET)
    out.print(FLEET, markup=False)
    out.rule("gpulet profile")
    profile = [sys.executable, "-m", "gpulet.cli", "profile", str(fleet), "--budget", "0.05"]
    subprocess.run(profile, check=True)  # noqa: S603 (our own command)
    words = Words()
    asked = [words.tokens(sentence) for triple in TRIPLES for sentence in triple] * ROUNDS
    out.rule("gpulet serve")
    with served(fleet) as running, ThreadPoolExecutor(SENDERS) as senders:
        answers = list(senders.map(running.embed, asked))
        batches = running.batches()
    embed = alone(model)
    is_same = show_answers(asked, answers, [embed(tokens) for tokens in asked])
    is_near = show_neighbours(answers)
    out.print(f"{len(asked)} requests of {len(TRIPLES) * 3} sentences in {batches} batches")
    return is_same and is_near and batches < len(asked)


def main() -> int:
    """The exit code."""
    try:
        for name in CHECKSUMS:
            find(name)
        with TemporaryDirectory() as folder:
            is_good = story(Path(folder))
    except Unusable as error:
        out.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        out.print(f"{error.name} is not installed: pip install 'gpulet[text]'", markup=False, soft_wrap=True)
        return Unusable.exit_code
    out.print("all good" if is_good else "NOT good: see above")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
