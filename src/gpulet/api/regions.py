"""System shared memory that clients register: read and written by position, never mapped.

A client may truncate its file at any time; a mapping would then end this process by SIGBUS, a read is merely short. Only
regular files in the operating system's shared memory folder can be registered; our own blocks have no name there.
"""

import os
import re
import stat
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from gpulet.api.asking import Place
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_FOLDER: Final = "/dev/shm"  # noqa: S108 (where shm_open puts what clients name)
_MOST_REGIONS: Final = 1024


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes from `offset` of the object `key`."""

    name: str
    key: str
    offset: int
    size: int
    descriptor: int


class Regions:
    """Registered regions by name; nothing can be registered where it `is_allowed` not. An input has `most_bytes` at most."""

    def __init__(self, *, is_allowed: bool, most_bytes: int = 1 << 26) -> None:
        self.is_allowed = is_allowed
        self._most_bytes = most_bytes
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Raises `RequestError` for names, keys and sizes that cannot be, and for a name that is taken."""
        if not self.is_allowed:
            msg = "shared memory is off: start the server with --allow-client-shm"
            raise RequestError(msg, HTTPStatus.FORBIDDEN)
        for what, text in (("name", name), ("key", key.removeprefix("/"))):
            if not _NAME.fullmatch(text) or text in {".", ".."}:
                msg = f"shared memory {what} must be letters, digits, _ . and -, is {text[:80]!r}"
                raise RequestError(msg)
        if name in self._regions:
            msg = f"shared memory region {name!r} is registered already"
            raise RequestError(msg)
        if len(self._regions) >= _MOST_REGIONS:
            msg = f"{_MOST_REGIONS} shared memory regions are registered already"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        self._regions[name] = Region(name, key, offset, size, _open(key, offset, size))

    def unregister(self, name: str) -> None:
        """Forget one region; one that is not there is no error, as in Triton."""
        region = self._regions.pop(name, None)
        if region:
            os.close(region.descriptor)

    def forget(self, name: str = "") -> None:
        """One, or all."""
        for known in [name] if name else list(self._regions):
            self.unregister(known)

    def status(self, name: str = "") -> list[Region]:
        """One region, or all; raises `RequestError` for one that is not there."""
        return [self._find(name)] if name else list(self._regions.values())

    def read(self, place: Place) -> Buffer:
        """The bytes at a place; raises `RequestError` where they are not there (any more)."""
        region = self._fit(place)
        if place.size > self._most_bytes:
            msg = f"an input of {place.size} bytes is larger than {self._most_bytes}"
            raise RequestError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            data = os.pread(region.descriptor, place.size, region.offset + place.offset)
        except OSError as error:
            msg = f"shared memory region {place.region!r} cannot be read: {error.strerror}"
            raise RequestError(msg) from None
        if len(data) != place.size:
            msg = f"shared memory region {place.region!r} was cut short: {len(data)} of {place.size} bytes are left"
            raise RequestError(msg)
        return data

    def write(self, place: Place, data: Buffer) -> None:
        """Put an output there; raises `RequestError` where it does not fit."""
        if len(data) > place.size:
            msg = f"an output of {len(data)} bytes does not fit the {place.size} at {place.region!r}"
            raise RequestError(msg)
        region = self._fit(place)
        begin = region.offset + place.offset
        if os.fstat(region.descriptor).st_size < begin + len(data):
            msg = f"shared memory region {place.region!r} was cut short"
            raise RequestError(msg)
        try:
            written = os.pwrite(region.descriptor, data, begin)
        except OSError as error:  # a sparse file, say, whose file system is full
            msg = f"shared memory region {place.region!r} cannot be written: {error.strerror}"
            raise RequestError(msg) from None
        if written != len(data):
            msg = f"shared memory region {place.region!r} took {written} of {len(data)} bytes"
            raise RequestError(msg)

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            msg = f"shared memory region {name[:80]!r} is not registered"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        return region

    def _fit(self, place: Place) -> Region:
        region = self._find(place.region)
        if place.offset < 0 or place.size < 0 or place.offset + place.size > region.size:
            msg = f"{place.size} bytes at {place.offset} are not within the {region.size} of region {place.region!r}"
            raise RequestError(msg)
        return region


def _open(key: str, offset: int, size: int) -> int:
    path = f"{_FOLDER}/{key.removeprefix('/')}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        msg = f"shared memory key {key!r} cannot be opened: {error.strerror}"
        raise RequestError(msg) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or offset < 0 or size <= 0 or offset + size > found.st_size:
        os.close(descriptor)
        msg = f"{size} bytes at {offset} are not within the {found.st_size} of shared memory key {key!r}"
        raise RequestError(msg)
    return descriptor
