"""One experiment in a process of its own: `child.py NAME --out DIR ...`. Writes `DIR/NAME.json` whatever happens."""

import argparse
import importlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from kit import Context, NotHereError, Result, Verdict, as_written, write
from runs import EXPERIMENTS

_GRACE_S = 20.0


def main() -> None:
    """Run it and leave; destructors of a lost GPU's graphs are not worth a crash."""
    a = parsed(sys.argv[1:])
    began = time.monotonic()
    context = Context(a.out, a.models, began + a.seconds, a.device == "cuda", a.tiny, a.dtype)
    threading.Thread(target=_end_late, args=(a.seconds + _GRACE_S,), daemon=True).start()
    result = _tried(a.name, context)
    took = time.monotonic() - began
    write(a.out / f"{a.name}.json", as_written(a.name, result, took, is_real=context.is_real))
    sys.stdout.flush()
    os._exit(0)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the parent hands on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args(arguments)


def _tried(name: str, context: Context) -> Result:
    try:
        result = importlib.import_module(EXPERIMENTS[name].module).run(context)
    except NotHereError as error:
        return Result(Verdict.SKIPPED, str(error))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is a result, and the others go on)
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return Result(Verdict.FAILED, said, {**context.numbers(name), "traceback": traceback.format_exc()})
    assert isinstance(result, Result)
    return result


def _end_late(after: float) -> None:
    """A call that hangs cannot be cancelled: the process ends."""
    time.sleep(after)
    os._exit(3)


if __name__ == "__main__":
    main()
