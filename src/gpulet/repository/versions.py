"""Versions of a model, and which of them a `version_policy` makes available."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpulet.errors import ModelError


def version_folders(model: Path) -> list[Path]:
    """The highest first. Folders that are not a whole number or start with 0 are not versions (Triton's rule)."""
    folders = [
        v for v in model.iterdir() if v.name.isdecimal() and v.name.isascii() and v.name[0] != "0" and v.is_dir()
    ]
    return sorted(folders, key=lambda v: int(v.name), reverse=True)


def available(there: Sequence[int], policy: Any) -> tuple[int, ...]:
    """Of the versions that are there, the highest first, those that a policy asks for; the highest alone without one.

    Raises `ModelError` where the policy leaves none.
    """
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(there)
        case "specific":
            asked = policy.specific.versions
            found = tuple(v for v in there if v in asked)
            if not found:
                have = ", ".join(map(str, there))
                msg = f"version_policy asks for {', '.join(map(str, asked)) or 'none'}; there is {have}"
                raise ModelError(msg)
            return found
        case _:
            return tuple(there[: max(1, policy.latest.num_versions)])
