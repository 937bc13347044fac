"""Results of a batch to the answer of one request: its rows, its best classes, what goes to shared memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpulet.api.asking import MOST_ELEMENTS, MOST_STRINGS, Wanted
from gpulet.api.forms import Form
from gpulet.api.regions import Regions
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs, Result, Signature
from gpulet.executors.bytestrings import STRINGS, ends, pack

NUMPY: Final = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
Labels = Mapping[str, Sequence[str]]
"""Names of an output's elements, by output."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One output of an answer; `data` is empty where it went to shared memory, `size` is its bytes all the same."""

    wanted: Wanted
    datatype: str
    shape: tuple[int, ...]
    data: Buffer
    size: int


def answer_of(
    form: Form, signature: Signature, outputs: Outputs, first_row: int, regions: Regions, labels: Labels
) -> list[Answered]:
    """What was wanted, in that order. Raises `RequestError` where shared memory does not take it."""
    by_name = {result.tensor.name: result for result in outputs}
    return [_one(form, w, by_name[w.name], first_row, signature.is_batched, regions, labels) for w in form.wanted]


def _one(
    form: Form, wanted: Wanted, result: Result, first_row: int, is_batched: bool, regions: Regions, labels: Labels
) -> Answered:
    shape = (form.rows, *result.shape[1:]) if is_batched else result.shape
    data: Buffer = rows_of(result, first_row, form.rows) if is_batched else result.data
    datatype = result.tensor.datatype
    if wanted.classes:
        _check_classes(wanted, prod(shape), form.rows)
        values: NDArray[Any] = np.frombuffer(data, NUMPY[datatype]).reshape(shape if is_batched else (1, *shape))
        best = _classes(values.reshape(len(values), -1), wanted.classes, labels.get(wanted.name, ()))
        shape = (len(values), len(best) // max(1, len(values)))[0 if is_batched else 1 :]
        data, datatype = pack(best), STRINGS
    if wanted.place:
        regions.write(wanted.place, data)
        return Answered(wanted, datatype, shape, b"", len(data))
    return Answered(wanted, datatype, shape, data, len(data))


def _check_classes(wanted: Wanted, elements: int, rows: int) -> None:
    """They are sorted and spelled on the loop."""
    if elements > MOST_ELEMENTS or min(elements, wanted.classes * rows) > MOST_STRINGS:
        msg = f"output {wanted.name!r} of {elements} elements: {wanted.classes} classes of a row are too many"
        raise RequestError(msg)


def rows_of(result: Result, first_row: int, rows: int) -> memoryview:
    """Some rows of a result whose first dimension counts them."""
    if result.tensor.datatype == STRINGS:
        width = prod(result.shape[1:])
        end = [0, *ends(result.data, (first_row + rows) * width)]
        return result.data[end[first_row * width] : end[-1]]
    row_bytes = len(result.data) // result.shape[0]
    return result.data[first_row * row_bytes : (first_row + rows) * row_bytes]


def _classes(rows: NDArray[Any], count: int, labels: Sequence[str]) -> list[bytes]:
    """`VALUE:INDEX[:LABEL]` of the largest elements of each row, the largest first (the classification extension)."""
    found: list[bytes] = []
    for row in rows:
        for index in np.argsort(-row.astype(np.float64), kind="stable")[:count].tolist():
            label = f":{labels[index]}" if index < len(labels) else ""
            found.append(f"{float(row[index]):f}:{index}{label}".encode())
    return found
