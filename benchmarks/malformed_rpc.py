"""Malformed messages over gRPC, drawn by family; for `fuzz.py`. Bytes that may by chance be a good request say so."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from malformed import REGION

from gpulet.api.rpc.messages import MESSAGES

SERVICE: Final = "/inference.GRPCInferenceService/"
_INFER: Final = SERVICE + "ModelInfer"
_STREAM: Final = SERVICE + "ModelStreamInfer"
_METHODS: Final = tuple(
    name.removesuffix("Request") for name in sorted(MESSAGES) if name.endswith("Request") and "." not in name
)
_EDGES: Final = (2**31, 2**53, 2**62, 2**63 - 1, -1, -(2**63), 0)


@dataclass(frozen=True, slots=True)
class RpcCase:
    """Messages of one call; a stream answers each of them."""

    method: str
    messages: tuple[bytes, ...]
    may_pass: bool = False
    is_cancelled: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether it is a call of many messages."""
        return self.method == _STREAM


def request(model: str = "tiny", **changes: Any) -> Any:
    """A good request of `tiny`, but for the changes of its input."""
    message: Any = MESSAGES["ModelInferRequest"](model_name=model, id="fuzz")
    message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 4], **changes})
    return message


def whole(message: Any, *raws: bytes) -> bytes:
    """With raw contents."""
    message.raw_input_contents.extend(raws)
    data: bytes = message.SerializeToString()
    return data


def good(values: bytes = bytes(16)) -> bytes:
    """Is answered."""
    return whole(request(), values)


def _one(data: bytes, *, may_pass: bool = False) -> RpcCase:
    return RpcCase(_INFER, (data,), may_pass)


def _random(r: Random) -> RpcCase:
    return RpcCase(SERVICE + r.choice(_METHODS), (r.randbytes(r.choice([1, 7, 90, 4000])),), may_pass=True)


def _flipped(r: Random) -> RpcCase:
    data = bytearray(whole(_full(), bytes(16)))
    for _ in range(r.randrange(1, 6)):
        data[r.randrange(len(data))] = r.randrange(256)
    return _one(bytes(data), may_pass=True)


def _full() -> Any:
    message = request()
    message.parameters["timeout"].int64_param = 10**9
    message.parameters["priority"].uint64_param = 1
    message.outputs.add(name="y").parameters["classification"].int64_param = 2
    return message


def _cut(r: Random) -> RpcCase:
    data = good()
    return _one(data[: r.randrange(1, len(data))], may_pass=True)


def _every_method(r: Random) -> RpcCase:
    name = r.choice(_METHODS)
    message = MESSAGES[f"{name}Request"]()
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, r.choice(["", "none", "\0", "x" * 3000, "tiny", "../..", "é" * 300]))
        elif field.type == field.TYPE_UINT64:
            setattr(message, field.name, r.choice([0, 1, 2**63, 2**64 - 1]))
    return RpcCase(SERVICE + name, (message.SerializeToString(),), may_pass=True)


def _unknown_method(r: Random) -> RpcCase:
    return RpcCase(
        r.choice(["/a/b", SERVICE + "Nothing", "/" + "x" * 500 + "/y", "//", SERVICE.lower() + "ModelInfer"]), (b"",)
    )


def _wire_types(r: Random) -> RpcCase:
    field = r.randrange(1, 9)
    data = bytes([field << 3 | r.choice([0, 1, 3, 4, 5, 6, 7])]) + r.randbytes(r.randrange(12))
    return _one(good() + data if r.getrandbits(1) else data, may_pass=True)


def _varints(r: Random) -> RpcCase:
    return _one(
        r.choice([b"\x3a", b"\x0a", b"\xba\x00"])
        + b"\xff" * r.choice([1, 9, 10, 50])
        + r.choice([b"", b"\x01", b"\x7f"])
    )


def _tiny_fields(r: Random) -> RpcCase:
    return _one(r.choice([b"\x1a\x00", b"\x3a\x00", b"\x2a\x00", b"\x32\x00"]) * r.choice([100, 5000, 50_000]))


def _raw_counts(r: Random) -> RpcCase:
    sizes = r.choice([(), (15,), (17,), (0,), (16, 16), (16, 0), (4,) * 4, (0,) * 300])
    return _one(whole(request(), *map(bytes, sizes)))


def _shapes(r: Random) -> RpcCase:
    edge = r.choice(_EDGES)
    shape = r.choice([[], [4], [edge, 4], [1, edge], [edge] * 4, [1, 1, 4], [33, 4], [2, 4], [1] * 5000, [2**62, 4]])
    return _one(whole(request(shape=shape), bytes(16)))


def _names(r: Random) -> RpcCase:
    changes = r.choice(
        [
            {"name": "z"},
            {"name": ""},
            {"name": "x" * 9000},
            {"datatype": "FP64"},
            {"datatype": ""},
            {"datatype": "é" * 900},
        ]
    )
    return _one(whole(request(r.choice(["tiny", "none", "", "\0", "two"]), **changes), bytes(16)))


def _bad_text(r: Random) -> RpcCase:
    return _one(good().replace(b"fuzz", r.choice([b"\xff\xfe\xfd\xfc", b"\xed\xa0\x80a", b"\xc0\x80ab"])))


def _contents(r: Random) -> RpcCase:
    contents = r.choice(
        [
            {"fp32_contents": [1]}, {"fp32_contents": [1] * 5}, {"fp64_contents": [1] * 4}, {"int_contents": [1] * 4},
            {"bytes_contents": [b"a"] * 4}, {}, {"bool_contents": [True] * 4, "int64_contents": [1]},
        ]
    )  # fmt: skip
    return _one(request(contents=contents).SerializeToString())


def _twice_given(r: Random) -> RpcCase:
    return _one(whole(request(contents={"fp32_contents": [1] * 4}), bytes(r.choice([16, 0]))))


def _strings(r: Random) -> RpcCase:
    item = {"datatype": "BYTES", "shape": [1, 2]}
    if r.getrandbits(1):
        texts = r.choice([[b"\xff", b"a"], [b"a"], [b"\xed\xa0\x80", b""]])
        return _one(request("words", **item, contents={"bytes_contents": texts}).SerializeToString())
    raw = r.choice([b"\xff\xff\xff\xff", b"\1\0\0\0\xff\0\0\0\0", b"\0\0\0\0", b"\1\0\0\0a\1\0\0\0bX"])
    return _one(whole(request("words", **item), raw))


def _parameters(r: Random) -> RpcCase:
    message = request()
    key = r.choice(["timeout", "priority"])
    match r.randrange(5):
        case 0:
            message.parameters[key].string_param = "soon"
        case 1:
            message.parameters[key].int64_param = -1
        case 2:
            message.parameters[key].uint64_param = 2**64 - 1
        case 3:
            message.parameters[key].double_param = float("nan")
        case _:
            message.parameters[key].SetInParent()
    return _one(whole(message, bytes(16)))


def _regions(r: Random) -> RpcCase:
    message = request()
    holder = message.inputs[0] if r.getrandbits(1) else message.outputs.add(name="y")
    holder.parameters["shared_memory_region"].string_param = r.choice([REGION, "none", ""])
    offset, size = r.choice(
        [(4096, 16), (4090, 16), (-1, 16), (2**63 - 1, 2**63 - 1), (0, 15), (0, -1), (2**62, 2**62)]
    )
    holder.parameters["shared_memory_byte_size"].int64_param = size
    holder.parameters["shared_memory_offset"].int64_param = offset
    return _one(whole(message, *([] if holder is message.inputs[0] else [bytes(16)])))


def _outputs(r: Random) -> RpcCase:
    message = request()
    for name in r.choice([["z"], ["y", "y"], ["y"] * 500, [""]]):
        message.outputs.add(name=name).parameters["classification"].int64_param = r.choice([0, -1, 2**63 - 1])
    return _one(whole(message, bytes(16)))


def _streams(r: Random) -> RpcCase:
    bad = [r.choice([_random, _flipped, _cut, _shapes, _contents, _parameters])(r).messages[0] for _ in range(5)]
    return RpcCase(_STREAM, (good(), *bad, good()), may_pass=True)


def _left_streams(r: Random) -> RpcCase:
    return RpcCase(_STREAM, (good(),) * r.randrange(1, 100), is_cancelled=True)


def _left(r: Random) -> RpcCase:  # noqa: ARG001 (a family)
    return RpcCase(_INFER, (good(),), is_cancelled=True)


RPC_FAMILIES: Final[dict[str, Callable[[Random], RpcCase]]] = {
    f"rpc_{name.removeprefix('_')}": family
    for name, family in sorted(globals().items())
    if name.startswith("_") and getattr(family, "__annotations__", {}).get("r") is Random
}
