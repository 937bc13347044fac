"""What of a `ModelConfig` is taken: whether the model is served at all, its files, its labels, its wishes; and the report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from gpulet.errors import ModelError
from gpulet.repository.artifact import Batching, Declaration, Labels, Wishes
from gpulet.repository.verdicts import VERDICTS, Use, verdicts_of
from gpulet.units import SECOND, US, from_ms

SLO_KEY = "gpulet.slo_ms"
SHAPES_KEY = "gpulet.shapes"
_OURS = "gpulet."
_LONGEST = 86_400 * SECOND
_ENDINGS = {
    "onnxruntime_onnx": (".onnx",),
    "onnxruntime": (".onnx",),
    "pytorch_libtorch": (".pt2", ".pt"),
    "pytorch": (".pt2", ".pt"),
}
"""Files that Triton's platforms and backends run, as far as we serve them."""


@dataclass(frozen=True, slots=True)
class Report:
    """What stands in a configuration and has no effect: names that nobody knows, and known ones that are not used."""

    unknown: tuple[str, ...] = ()
    not_used: tuple[str, ...] = ()


NO_REPORT = Report()


def report_of(config: Any, unknown: Sequence[str]) -> Report:
    """Of a configuration that is served; parameters by their keys."""
    ignored = [path for path, verdict in verdicts_of(config).items() if verdict.use is Use.NOT_USED]
    others = sorted(key for key in config.parameters if key not in {SLO_KEY, SHAPES_KEY})
    foreign = [f"parameters.{key}" for key in others if not key.startswith(_OURS)]
    misspelt = [f"parameters.{key}" for key in others if key.startswith(_OURS)]
    return Report((*unknown, *misspelt), (*ignored, *foreign))


def refuse(name: str, config: Any) -> None:
    """Raise `ModelError` for the first thing asked for that we do not do."""
    for reason in _refusals(name, config):
        raise ModelError(reason)


def _refusals(name: str, config: Any) -> Iterator[str]:
    if config.name not in {"", name}:
        yield f"config.pbtxt names it {config.name!r}, its folder {name!r}"
    yield from _foreign(config)
    for path, verdict in verdicts_of(config).items():
        if verdict.use is Use.REFUSED:
            yield f"{path}: {verdict.about}"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    yield from _bad_tensors(config)


def _foreign(config: Any) -> Iterator[str]:
    """Ensembles name the platform as well; their stages say more."""
    if config.platform == "ensemble" or config.HasField("ensemble_scheduling"):
        yield f"ensemble_scheduling: {VERDICTS['ensemble_scheduling'].about}"
    for kind in ("platform", "backend"):
        asked = getattr(config, kind)
        if asked and asked not in _ENDINGS:
            yield f"{kind} {asked!r} is not served; served are {', '.join(_ENDINGS)}"
    if config.platform and config.backend and _ENDINGS[config.platform] != _ENDINGS[config.backend]:
        yield f"platform {config.platform!r} is not of backend {config.backend!r}"


def _bad_tensors(config: Any) -> Iterator[str]:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for tensor in tensors:
            if not tensor.name:
                yield f"{kind}: one has no name"
            if not tensor.dims or any(n == 0 or n < -1 for n in tensor.dims):
                yield f"{kind} {tensor.name}: dims must be above 0, or -1 for any; they are {list(tensor.dims)}"
            if tensor.HasField("reshape") and list(tensor.reshape.shape) != list(tensor.dims):
                shape = list(tensor.reshape.shape)
                yield f"{kind} {tensor.name}: reshape {shape} of dims {list(tensor.dims)}: tensors reach a model as sent"


def wishes_of(declaration: Declaration) -> Wishes:
    """Objective, batch, queue, delay and shapes; raises `ModelError` for a parameter that makes no sense."""
    config = declaration.config
    batching = config.dynamic_batching
    policy = batching.default_queue_policy
    is_said = SLO_KEY in config.parameters
    slo = _slo(config.parameters[SLO_KEY].string_value) if is_said else policy.default_timeout_microseconds * US
    if slo > _LONGEST:
        msg = f"an objective of {slo / SECOND:.3g} s is longer than a day"
        raise ModelError(msg)
    is_written = declaration.batching is Batching.AS_WRITTEN
    shapes = config.parameters[SHAPES_KEY].string_value if SHAPES_KEY in config.parameters else ""
    return Wishes(
        slo,
        max(1, config.max_batch_size) if is_written else 0,
        policy.max_queue_size,
        _shapes(shapes),
        batching.max_queue_delay_microseconds * US,
    )


def _slo(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (isfinite(value) and value > 0):
        msg = f"parameters {SLO_KEY} = {text!r} is not a number of milliseconds above 0"
        raise ModelError(msg)
    return max(1, from_ms(value))


def _shapes(text: str) -> tuple[str, ...]:
    shapes = tuple(dict.fromkeys(text.replace(",", " ").split()))
    for shape in shapes:
        if not all(n.isdecimal() and int(n) for n in shape.split("x")):
            msg = f"parameters {SHAPES_KEY}: {shape!r} is no shape such as 224x224"
            raise ModelError(msg)
    return shapes


def file_names(config: Any, formats: Sequence[str]) -> tuple[str, ...]:
    """The names that a version's file may have, the first that is there being served; raises `ModelError` for none."""
    kind = config.platform or config.backend
    endings = _ENDINGS.get(kind, tuple(Path(name).suffix for name in formats))
    named = config.default_model_filename
    if named:
        check_inside("default_model_filename", named)
        allowed = [Path(name).suffix for name in formats if Path(name).suffix in endings]
        if PurePosixPath(named).suffix not in allowed:
            msg = f"default_model_filename {named!r}: served on these devices are {', '.join(allowed) or 'none of its kind'}"
            raise ModelError(msg)
        return (named,)
    names = tuple(name for name in formats if Path(name).suffix in endings)
    if not names:
        msg = f"{kind}: these devices serve {', '.join(formats)}"
        raise ModelError(msg)
    return names


def labels_of(folder: Path, config: Any) -> Labels:
    """The label files of outputs; raises `ModelError` where one is not there."""
    files: dict[str, Path] = {}
    for output in config.output:
        if output.label_filename:
            check_inside("label_filename", output.label_filename)
            files[output.name] = folder / output.label_filename
            if not files[output.name].is_file():
                msg = f"output {output.name}: label_filename {output.label_filename!r} is not there"
                raise ModelError(msg)
    return Labels(files)


def check_inside(what: str, name: str) -> None:
    """A file of a model stands in the model's folder; raises `ModelError`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        msg = f"{what} {name!r} is outside the model's folder"
        raise ModelError(msg)
