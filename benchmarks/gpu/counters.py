"""NVML's counters around some work, where NVML gives them."""

from collections.abc import Callable, Mapping

from kit import Context

from gpulet.errors import GpuletError


def counted(context: Context, act: Callable[[], object]) -> Mapping[str, float]:
    """Do it, and say what Hopper's counters say of that time; nothing where there are none."""
    if not context.is_real:
        act()
        return {}
    from gpulet.executors.nvmllibrary import open_nvml  # noqa: PLC0415 (one of several may lack NVML)

    done: list[bool] = []

    def once() -> None:
        act()
        done.append(True)

    found: Mapping[str, float] = {}
    try:
        library = open_nvml()
        found = {metric.name: value for metric, value in library.measured(0, once).items()}
        library.close()
    except GpuletError:
        if not done:
            act()
    return found
