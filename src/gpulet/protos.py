"""Protobuf messages from `.proto` files that lie in the package, without a compiler and in a pool of their own.

Two libraries that register the package `inference` in protobuf's default pool cannot live in one process, and clients of
the protocol do register it. What is read of the language is what our files use: proto3 messages, enums, oneofs, maps.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_TOKEN: Final = re.compile(r"//[^\n]*|\"[^\"]*\"|[\w.]+|[{}=;<>,]")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}

Messages = Mapping[str, type[Message]]
"""Message classes by their names within the package, nested ones as `Outer.Inner`."""


@cache
def load(*names: str) -> Messages:
    """The messages of these files (`api/rpc/inference.proto`), all of one package; later ones may name earlier ones'."""
    pool = descriptor_pool.DescriptorPool()
    found: dict[str, type[Message]] = {}
    loaded: list[str] = []
    for name in names:
        text = files("gpulet").joinpath(name).read_text(encoding="utf-8")
        file = _Parser(text, name, tuple(loaded)).file()
        pool.Add(file)
        loaded.append(name)
        for message in file.message_type:
            found |= dict(_classes(pool, file.package, message, message.name))
    return found


def _classes(pool: Any, package: str, message: Any, name: str) -> Iterator[tuple[str, type[Message]]]:
    yield name, message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
    for nested in message.nested_type:
        yield from _classes(pool, package, nested, f"{name}.{nested.name}")


class _Parser:
    """One file, token by token."""

    def __init__(self, text: str, name: str, needs: tuple[str, ...]) -> None:
        self._tokens = iter([token for token in _TOKEN.findall(text) if not token.startswith("//")])
        self._file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3", dependency=needs)

    def file(self) -> descriptor_pb2.FileDescriptorProto:
        for token in self._tokens:
            match token:
                case "package":
                    self._file.package = self._take()
                    self._take(";")
                case "message":
                    self._message(self._file.message_type.add(name=self._take()))
                case "enum":
                    self._enum(self._file.enum_type.add(name=self._take()))
                case "syntax":
                    self._until(";")
                case _:
                    raise AssertionError(token)
        return self._file

    def _message(self, message: Any) -> None:
        self._take("{")
        for token in self._tokens:
            match token:
                case "}":
                    return
                case "message":
                    self._message(message.nested_type.add(name=self._take()))
                case "enum":
                    self._enum(message.enum_type.add(name=self._take()))
                case "oneof":
                    self._oneof(message)
                case _:
                    self._field(message, token)

    def _oneof(self, message: Any) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._take())
        self._take("{")
        while (token := self._take()) != "}":
            self._field(message, token).oneof_index = index

    def _field(self, message: Any, token: str) -> Any:
        label = _Field.LABEL_OPTIONAL
        if token == "repeated":  # noqa: S105 (a token of a language)
            label, token = _Field.LABEL_REPEATED, self._take()
        if token == "map":  # noqa: S105
            return self._map(message)
        field = message.field.add(name=self._take(), label=label)
        _set_type(field, token)
        self._number(field)
        return field

    def _map(self, message: Any) -> Any:
        """As protobuf's compiler does it: a repeated message of entries."""
        self._take("<")
        key = self._take()
        self._take(",")
        value = self._take()
        self._take(">")
        field = message.field.add(name=self._take(), label=_Field.LABEL_REPEATED)
        self._number(field)
        entry = message.nested_type.add(name="".join(p.capitalize() for p in field.name.split("_")) + "Entry")
        entry.options.map_entry = True
        _set_type(entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL), key)
        _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), value)
        _set_type(field, entry.name)
        return field

    def _enum(self, enum: Any) -> None:
        self._take("{")
        while (token := self._take()) != "}":
            self._number(enum.value.add(name=token))

    def _number(self, thing: Any) -> None:
        self._take("=")
        thing.number = int(self._take())
        self._take(";")

    def _take(self, wanted: str = "") -> str:
        token: str = next(self._tokens)
        assert not wanted or token == wanted, f"{self._file.name}: {token!r} where {wanted!r} should be"
        return token

    def _until(self, last: str) -> None:
        while self._take() != last:
            pass


def _set_type(field: Any, name: str) -> None:
    """A scalar, or the name of a message or enum, which the pool looks up."""
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type_name = name
