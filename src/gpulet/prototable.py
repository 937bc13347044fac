"""Protobuf messages from a table, in a pool of their own.

The default pool knows each file and message once per process: a peer's client that brings the same names
(`tritonclient.grpc` does) could not be imported beside ours.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Table: TypeAlias = Mapping[str, str]
"""By message: `type name number, ...`, `repeated` before the type, maps as `map<key:value>`, a oneof as a fourth word.

Nested messages and enums have their parents' names before theirs: `A.B`. An enum is `enum` and its values, from 0.
"""
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def pool_of(package: str, table: Table) -> descriptor_pool.DescriptorPool:
    """A private pool with one file of these messages, proto3."""
    file = descriptor_pb2.FileDescriptorProto(name=f"gpulet/{package}.proto", package=package, syntax="proto3")
    messages: dict[str, Any] = {}
    for name, body in table.items():
        outer, _, last = name.rpartition(".")
        parent = messages[outer] if outer else file
        if body.startswith("enum "):
            enum = parent.enum_type.add(name=last)
            for number, value in enumerate(body.split()[1:]):
                enum.value.add(name=value, number=number)
        else:
            messages[name] = (parent.nested_type if outer else parent.message_type).add(name=last)
    for name, message in messages.items():
        for words in _fields(table[name]):
            _add_field(message, name, words, package, table)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def class_of(pool: descriptor_pool.DescriptorPool, name: str) -> type[Any]:
    """The class of a message, by its full name."""
    made: type[Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    return made


def _fields(body: str) -> Iterator[list[str]]:
    for text in body.split(","):
        words = text.split()
        if words:
            yield words


def _add_field(message: Any, scope: str, words: list[str], package: str, table: Table) -> None:
    is_repeated = words[0] == "repeated"
    kind, name, number, *oneof = words[1:] if is_repeated else words
    is_map = kind.startswith("map<")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if is_repeated or is_map:
        field.label = _Field.LABEL_REPEATED
    if is_map:
        entry = _map_entry(message, name, kind, scope, package, table)
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{scope}.{entry}"
        return
    _set_type(field, kind, scope, package, table)
    if oneof:
        choices = [choice.name for choice in message.oneof_decl]
        if oneof[0] not in choices:
            message.oneof_decl.add(name=oneof[0])
            choices.append(oneof[0])
        field.oneof_index = choices.index(oneof[0])


def _map_entry(message: Any, name: str, kind: str, scope: str, package: str, table: Table) -> str:
    """A map is repeated messages of a key and a value, with protobuf's name for them."""
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    for number, (part, of) in enumerate(zip(("key", "value"), kind[4:-1].split(":"), strict=True), start=1):
        field = entry.field.add(name=part, number=number, label=_Field.LABEL_OPTIONAL)
        _set_type(field, of, scope, package, table)
    return str(entry.name)


def _set_type(field: Any, kind: str, scope: str, package: str, table: Table) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    while f"{scope}.{kind}".removeprefix(".") not in table:
        assert scope, f"the table has no {kind}"
        scope = scope.rpartition(".")[0]
    full = f"{scope}.{kind}".removeprefix(".")
    field.type = _Field.TYPE_ENUM if table[full].startswith("enum ") else _Field.TYPE_MESSAGE
    field.type_name = f".{package}.{full}"
