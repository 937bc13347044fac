"""The Unix socket of admin's calls: in a folder of our own user, where nobody else may look."""

import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from gpulet.errors import Unusable


def default_path(http_port: int) -> Path:
    """Where a server of that port is found, and where `gpulet control` looks for it."""
    return Path(tempfile.gettempdir()) / f"gpulet-{os.getuid()}" / f"{http_port}.sock"


def bind_admin(path: Path) -> socket.socket:
    """A bound socket; one that a killed server left is replaced. Raises `Unusable` where somebody else could be behind it."""
    try:
        _own(path.parent)
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            msg = f"cannot listen on {path} (admin_socket): it is there, and no socket"
            raise Unusable(msg)
        if _answers(path):
            msg = f"cannot listen on {path} (admin_socket): another server does"
            raise Unusable(msg)
        path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        msg = f"cannot listen on {path} (admin_socket): {error.strerror or error}"
        raise Unusable(msg) from None
    return bound


def release(path: Path) -> None:
    """Nobody listens any more."""
    with suppress(OSError):
        path.unlink()


def _own(folder: Path) -> None:
    """It is made for us alone; one that is there must be ours, and closed to others' writing."""
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = f"cannot use {folder} for admin_socket: others may write there"
        raise Unusable(msg)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
