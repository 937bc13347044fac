"""Constants of devices by kind, for half and for single precision.

"datasheet": the vendor's dense numbers as remembered, leads rather than measurements. Of the H200 the
bandwidth is what copies reach on the test machine (about 4,300 of 4,800 GB/s); its matrix products reach 790 TFLOP/s of 989.
"""

from collections.abc import Mapping

from gpulet.errors import ConfigError
from gpulet.roofline import Hardware

_T, _G = 1e12, 1e9
_DATASHEET, _MEASURED = "datasheet, from memory", "measured on one H200"

HALF: Mapping[str, Hardware] = {
    "v100": Hardware(80, 125 * _T, 900 * _G, 2, _DATASHEET),
    "rtx2080ti": Hardware(68, 53.8 * _T, 616 * _G, 2, _DATASHEET),
    "t4": Hardware(40, 0.55 * 65 * _T, 320 * _G, 2, f"{_DATASHEET}; 55 % of its peak, since power limits it"),
    "a100-40gb": Hardware(108, 312 * _T, 1555 * _G, 2, _DATASHEET),
    "a100-80gb": Hardware(108, 312 * _T, 2039 * _G, 2, _DATASHEET),
    "h100-80gb": Hardware(132, 989 * _T, 3350 * _G, 2, _DATASHEET),
    "h200-141gb": Hardware(132, 989 * _T, 4300 * _G, 2, f"{_DATASHEET}; bandwidth {_MEASURED}"),
}
"""Tensor cores, 2 bytes an element; a 2080 Ti adds up in single precision."""

SINGLE: Mapping[str, Hardware] = {
    "v100": Hardware(80, 15.7 * _T, 900 * _G, 4, _DATASHEET),
    "rtx2080ti": Hardware(68, 13.4 * _T, 616 * _G, 4, _DATASHEET),
    "t4": Hardware(40, 0.55 * 8.1 * _T, 320 * _G, 4, f"{_DATASHEET}; 55 % of its peak, since power limits it"),
    "a100-40gb": Hardware(108, 19.5 * _T, 1555 * _G, 4, _DATASHEET),
    "a100-80gb": Hardware(108, 19.5 * _T, 2039 * _G, 4, _DATASHEET),
    "h100-80gb": Hardware(132, 67 * _T, 3350 * _G, 4, _DATASHEET),
    "h200-141gb": Hardware(132, 67 * _T, 4300 * _G, 4, f"{_DATASHEET}; bandwidth {_MEASURED}"),
}
"""Without tensor cores, 4 bytes an element."""


def find_hardware(kind: str) -> Hardware:
    """Half precision of that kind; raises `ConfigError` that lists the known ones."""
    if kind not in HALF:
        known = ", ".join(HALF)
        msg = f"peak and bandwidth of device kind {kind} are not on record, so its latencies cannot be computed (known: {known})"
        raise ConfigError(
            msg + '; bring a table with `gpulet import-profile` and write profile = "FILE" under [[devices]]'
        )
    return HALF[kind]
