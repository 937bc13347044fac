"""The JSON of infer requests, as the Open Inference Protocol v2 and Triton's extensions write it.

Unknown parameters are allowed and ignored, as the protocol says.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gpulet.api.asking import MOST_DIMENSIONS, MOST_TENSORS


class TensorParameters(msgspec.Struct):
    """Of an input or a requested output; others are allowed and ignored, as the protocol says."""

    binary_data_size: int | UnsetType = UNSET
    binary_data: bool | UnsetType = UNSET
    classification: int = 0
    shared_memory_region: str = ""
    shared_memory_offset: int = 0
    shared_memory_byte_size: int = 0


class InputDoc(msgspec.Struct):
    """One input of a request."""

    name: str
    shape: Annotated[tuple[int, ...], Meta(max_length=MOST_DIMENSIONS)]
    datatype: str
    parameters: TensorParameters | UnsetType = UNSET
    data: msgspec.Raw | UnsetType = UNSET


class OutputDoc(msgspec.Struct):
    """One requested output."""

    name: str
    parameters: TensorParameters | UnsetType = UNSET


class RequestParameters(msgspec.Struct):
    """Of a request: `timeout` in microseconds, `priority` 1 first and 0 by default, as in Triton."""

    timeout: int = 0
    priority: int = 0
    binary_data_output: bool = False


class RequestDoc(msgspec.Struct):
    """A request's JSON."""

    inputs: Annotated[list[InputDoc], Meta(max_length=MOST_TENSORS)]
    id: str = ""
    outputs: Annotated[list[OutputDoc], Meta(max_length=MOST_TENSORS)] | UnsetType = UNSET
    parameters: RequestParameters | UnsetType = UNSET
