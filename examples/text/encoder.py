"""BERT sentence encoders as ONNX graphs, built from their weights alone: no training framework is needed.

A sentence's embedding is the mean of its tokens' last states, of length one. Masked tokens take no part in anything, so that a
sentence may be padded to any length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import numpy as np
import onnx
import spox.opset.ai.onnx.v20 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build

INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT: Final = "sentence_embedding"
_MASKED: Final = -1e9
"""Added to a score, it leaves nothing of it after softmax; and unlike infinity a row that is masked altogether stays a number."""
_LEAST_COUNT: Final = 1e-9
_LEAST_LENGTH: Final = 1e-12

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Bert:
    """What the weights do not tell."""

    layers: int
    heads: int
    epsilon: float = 1e-12


def sentence_encoder(weights: Weights, bert: Bert) -> onnx.ModelProto:
    """INT64 `INPUTS` of [rows, tokens] to FP32 `OUTPUT` of [rows, hidden]; `weights` by their names in `BertModel`."""
    given = {name: argument(Tensor(np.int64, ("rows", "tokens"))) for name in INPUTS}
    ids, mask, types = given.values()
    kept = op.cast(mask, to=np.float32)
    states = _embed(weights, bert, ids, types)
    bias = op.unsqueeze(op.mul(op.sub(_number(1), kept), _number(_MASKED)), _integers(1, 2))
    for layer in range(bert.layers):
        states = _layer(weights, bert, f"encoder.layer.{layer}", states, bias)
    return build(given, {OUTPUT: _pool(states, op.unsqueeze(kept, _integers(2)))})


def _embed(weights: Weights, bert: Bert, ids: Var, types: Var) -> Var:
    """Of the words, of their places, of the sentence they are in."""
    tables = [op.constant(value=weights[f"embeddings.{of}_embeddings.weight"]) for of in ("word", "position")]
    places = op.slice(tables[1], _integers(0), op.shape(ids, start=1, end=2))
    kinds = op.gather(op.constant(value=weights["embeddings.token_type_embeddings.weight"]), types)
    return _normalised(weights, bert, "embeddings", op.add(op.add(op.gather(tables[0], ids), kinds), places))


def _layer(weights: Weights, bert: Bert, name: str, states: Var, bias: Var) -> Var:
    mixed = _dense(weights, f"{name}.attention.output.dense", _attend(weights, bert, name, states, bias))
    states = _normalised(weights, bert, f"{name}.attention.output", op.add(mixed, states))
    wide = op.gelu(_dense(weights, f"{name}.intermediate.dense", states))
    return _normalised(weights, bert, f"{name}.output", op.add(_dense(weights, f"{name}.output.dense", wide), states))


def _attend(weights: Weights, bert: Bert, name: str, states: Var, bias: Var) -> Var:
    """Each token's mean of all values, by how its query meets their keys."""
    width = weights[f"{name}.attention.self.query.bias"].shape[0] // bert.heads

    def split(of: str, order: tuple[int, ...]) -> Var:
        heads = op.reshape(_dense(weights, f"{name}.attention.self.{of}", states), _integers(0, 0, bert.heads, width))
        return op.transpose(heads, perm=order)

    query = op.mul(split("query", (0, 2, 1, 3)), _number(1 / sqrt(width)))
    scores = op.softmax(op.add(op.matmul(query, split("key", (0, 2, 3, 1))), bias))
    joined = op.transpose(op.matmul(scores, split("value", (0, 2, 1, 3))), perm=(0, 2, 1, 3))
    return op.reshape(joined, _integers(0, 0, bert.heads * width))


def _pool(states: Var, kept: Var) -> Var:
    """The mean of what is kept, of length one."""
    count = op.max([op.reduce_sum(kept, _integers(1), keepdims=0), _number(_LEAST_COUNT)])
    mean = op.div(op.reduce_sum(op.mul(states, kept), _integers(1), keepdims=0), count)
    return op.div(mean, op.max([op.reduce_l2(mean, _integers(1)), _number(_LEAST_LENGTH)]))


def _dense(weights: Weights, name: str, states: Var) -> Var:
    weight = np.ascontiguousarray(weights[f"{name}.weight"].T)
    return op.add(op.matmul(states, op.constant(value=weight)), op.constant(value=weights[f"{name}.bias"]))


def _normalised(weights: Weights, bert: Bert, name: str, states: Var) -> Var:
    scale, shift = (op.constant(value=weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias"))
    return op.layer_normalization(states, scale, shift, epsilon=bert.epsilon)[0]


def _number(value: float) -> Var:
    return op.constant(value=np.array(value, np.float32))


def _integers(*values: int) -> Var:
    return op.constant(value=np.array(values, np.int64))
