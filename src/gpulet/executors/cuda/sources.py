"""Model files as a runtime is given them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One model's file, and the shape classes it is served in ("128", "12x7"); none where no dimension but the rows is free."""

    path: str
    shapes: tuple[str, ...] = ()
