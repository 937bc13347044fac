"""A venv for each peer, outside of the repository."""

import subprocess
import sys
import sysconfig

from peers.processes import Unavailable
from peers.table import Peer

_LIMIT_S = 1200


def install(peer: Peer) -> None:
    """Make its venv, or bring it up to date with the table; raises `Unavailable`."""
    peer.venv.parent.mkdir(parents=True, exist_ok=True)
    steps = [
        [sys.executable, "-m", "venv", str(peer.venv)],
        [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages],
    ]
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        except subprocess.TimeoutExpired:
            msg = f"not installed within {_LIMIT_S} s"
            raise Unavailable(msg) from None
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")][-1:]
            msg = f"cannot be installed: {' '.join(last)}"
            raise Unavailable(msg)


def environment(peer: Peer) -> dict[str, str]:
    """What its processes need beside ours."""
    if peer.name != "pytriton":
        return {}
    # Triton's stub for Python models links against the libpython of the interpreter that runs it.
    return {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}


def check(peer: Peer) -> None:
    """Raises `Unavailable` where it has not been set up."""
    if not peer.python.exists():
        msg = f"not set up: benchmarks/peers.py setup {peer.name}"
        raise Unavailable(msg)
