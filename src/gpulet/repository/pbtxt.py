"""`config.pbtxt`: protobuf's text format to a `ModelConfig`. What the message has no field for is told, and is no error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from gpulet.errors import ModelError
from gpulet.modelconfig import PACKAGE, ModelConfig
from gpulet.repository.artifact import Batching, Declaration
from gpulet.repository.files import read_text

CONFIG = "config.pbtxt"


def read_pbtxt(path: Path) -> tuple[Declaration, tuple[str, ...]]:
    """What a file declares, and the fields in it that nobody knows; raises `ModelError` with line and column."""
    return parse_pbtxt(read_text(path))


def parse_pbtxt(text: str) -> tuple[Declaration, tuple[str, ...]]:
    """The same from text."""
    try:
        config = text_format.Parse(text, ModelConfig(), allow_unknown_field=True)
        walk = _Walk(text)
        walk.fields(ModelConfig.DESCRIPTOR, "")
    except (text_format.ParseError, RecursionError) as error:
        why = str(error).replace(f"{PACKAGE}.", "") or "nested too deep"
        msg = f"{CONFIG}: {why}"
        raise ModelError(msg) from None
    says = walk.names & {"max_batch_size", "input", "output"}
    return Declaration(config, Batching.AS_WRITTEN if says else Batching.BY_MODEL), tuple(dict.fromkeys(walk.unknown))


class _Walk:
    """Over the tokens of a text that parses: which names stand at its top, and which are of no field."""

    def __init__(self, text: str) -> None:
        self._tokens = text_format.Tokenizer(text.splitlines())
        self.names: set[str] = set()
        self.unknown: list[str] = []

    def fields(self, of: Any, path: str, end: str = "") -> None:
        """Fields of a message (None: of one that nobody knows), up to `end`."""
        while not self._tokens.AtEnd() and not (end and self._tokens.TryConsume(end)):
            self._field(of, path)

    def _field(self, of: Any, path: str) -> None:
        name = "".join(self._name())
        field = of.fields_by_name.get(name) if of else None
        if not path:
            self.names.add(name)
        if of and not field:
            self.unknown.append(f"{path}{name}")
        self._tokens.TryConsume(":")
        self._value(field.message_type if field else None, f"{path}{name}.")
        _ = self._tokens.TryConsume(",") or self._tokens.TryConsume(";")

    def _name(self) -> Iterator[str]:
        if not self._tokens.TryConsume("["):
            yield self._tokens.ConsumeIdentifierOrNumber()
            return
        while not self._tokens.TryConsume("]"):
            yield self._tokens.token
            self._tokens.NextToken()

    def _value(self, of: Any, path: str) -> None:
        if self._tokens.TryConsume("["):
            while not self._tokens.TryConsume("]"):
                self._value(of, path)
                self._tokens.TryConsume(",")
        elif self._tokens.TryConsume("{"):
            self.fields(of, path, "}")
        elif self._tokens.TryConsume("<"):
            self.fields(of, path, ">")
        else:
            self._scalar()

    def _scalar(self) -> None:
        """One token, after its sign; or strings, which are one value where they follow each other."""
        self._tokens.TryConsume("-")
        is_text = self._tokens.token[:1] in {'"', "'"}
        self._tokens.NextToken()
        while is_text and self._tokens.token[:1] in {'"', "'"}:
            self._tokens.NextToken()
