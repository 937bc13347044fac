"""A table of few measured points, filled by the roofline that is fitted to them, where points it has not seen accept it."""

from collections.abc import Iterable, Mapping

from gpulet.device import Kind, Size
from gpulet.errors import ConfigError
from gpulet.profile import Profile
from gpulet.roofline import FORMS, Form, Hardware, Work
from gpulet.roofline.analytic import filled
from gpulet.roofline.fit import FEWEST, Fitted, Sample, best_form, fitted
from gpulet.roofline.hardware import HALF, SINGLE
from gpulet.roofline.works import find_work
from gpulet.units import PLAIN

HELD_OUT = 3
"""Points of every model that no fit sees (specification, section 6.3)."""
PRECISIONS: Mapping[str, Mapping[str, Hardware]] = {"half": HALF, "single": SINGLE}


def filled_from_few(table: Profile, kind: Kind, sizes: Iterable[Size], precision: str) -> Profile:
    """All `sizes` for the models whose fit is accepted; the others as measured. `precision` is what was measured in.

    A model stays as measured too where its work is not on record, or with fewer than eight points. Raises `ConfigError` for a
    kind that is not on record.
    """
    known = PRECISIONS[precision]
    if kind.name not in known:
        msg = f"fit = {precision!r}: peak and bandwidth of device kind {kind.name} are not on record; known are {', '.join(known)}"
        raise ConfigError(msg)
    samples = {name: _samples(table, name) for name in table.models}
    works = {
        name: work for name in table.models if len(samples[name]) >= FEWEST + HELD_OUT and (work := _work(name, kind))
    }
    every = {form: {n: _fit(samples[n], work, known[kind.name], form) for n, work in works.items()} for form in FORMS}
    if not works:
        return table
    return filled(table, sizes, every[best_form({form: fits.values() for form, fits in every.items()})])


def _samples(table: Profile, model: str) -> list[Sample]:
    points = (p for p in table.points if p.model == model and p.shape == PLAIN and p.processes == 1)
    return sorted((p.size, p.rows, p.mean) for p in points)


def _work(model: str, kind: Kind) -> Work | None:
    try:
        return find_work(model, kind.name)
    except ConfigError:
        return None


def _fit(samples: list[Sample], work: Work, hardware: Hardware, form: Form) -> Fitted:
    """The points held out lie between the others: the ends are what a fit needs most."""
    places = {(2 * n + 1) * len(samples) // (2 * HELD_OUT) for n in range(HELD_OUT)}
    seen = [sample for place, sample in enumerate(samples) if place not in places]
    return fitted(seen, [samples[place] for place in sorted(places)], work, hardware, form)
