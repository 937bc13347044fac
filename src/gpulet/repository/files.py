"""Files of a model: text, digests, and cheap stamps. What cannot be read is a `ModelError` that names the file, not its folder."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from gpulet.errors import ModelError

Stamp: TypeAlias = tuple[str, int, int]
"""Path, bytes and time of change of a file: while they stay, the file is taken for unchanged."""
_LARGEST_TEXT = 1 << 20


def read_text(path: Path) -> str:
    """A file that people write, of at most a MiB."""
    with _named(path):
        if path.stat().st_size > _LARGEST_TEXT:
            msg = f"{path.name} is larger than {_LARGEST_TEXT} bytes"
            raise ModelError(msg)
        return path.read_text(encoding="utf-8")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with _named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> Stamp:
    """Its stamp."""
    with _named(path):
        status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"{path.name} cannot be read: {error.strerror}"
        raise ModelError(msg) from None
    except UnicodeDecodeError as error:
        msg = f"{path.name} is not UTF-8: byte {error.start} {error.reason}"
        raise ModelError(msg) from None
