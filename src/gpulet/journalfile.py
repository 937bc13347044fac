"""The journal on disk: what a live server's core heard and said, line by line."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from gpulet.errors import BadInput
from gpulet.logs import tell
from gpulet.units import MIB

_FLUSH_S = 1.0
_JOURNAL_BUFFER = 1 * MIB


class JournalFile:
    """Appends lines to a file; the operating system gets them once a second, and at the end."""

    def __init__(self, path: Path, header: bytes) -> None:
        try:
            if path.is_file():  # an earlier server's, perhaps of the crash that made this one start
                path.replace(path.with_name(path.name + ".previous"))
            self._file: BinaryIO = path.open("wb", buffering=_JOURNAL_BUFFER)
        except OSError as error:
            msg = f"[server] journal: {path} cannot be written: {error.strerror}"
            raise BadInput(msg) from None
        self._is_open = True
        self._file.write(header)
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(_FLUSH_S, self._flush)

    def write(self, line: bytes) -> None:
        """Append one line; a full disk ends the journal, not the server."""
        if self._is_open:
            self._guard(lambda: self._file.write(line))

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._is_open = False
            tell("journal_stopped", error=str(error))

    def _flush(self) -> None:
        if self._is_open:
            self._guard(self._file.flush)
        self._handle = self._loop.call_later(_FLUSH_S, self._flush)

    def close(self) -> None:
        """Write out what is left."""
        self._handle.cancel()
        self._guard(self._file.close)
