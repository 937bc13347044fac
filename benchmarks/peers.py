"""Other servers beside ours under the same load, on this machine: CPU per request, largest rates, levels of a mix.

    benchmarks/peers.py setup [PEER...]                a venv for each, outside of the repository
    benchmarks/peers.py run W1|W2|W4|all [--minutes N] the workloads; then a table, and "Must show" held against it
    benchmarks/peers.py run all --resume FILE          goes on where a run was cut off
    benchmarks/peers.py report FILE                    the table of a run again

Every piece is written down (JSON lines) before the next begins. `--quick` only shows that all of it works.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from common import HERE, record
from peers import venvs
from peers.ledger import Ledger
from peers.processes import Unavailable, adopt_orphans
from peers.report import WAYS, Report, claims, show, summary
from peers.table import PEERS, peers_root
from peers.workloads import BATCHED, ECHO, OURS, QUICK, SHAPES, Bench, Pace

_DRAFTS = HERE.parent / "out"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 1: a peer could not be set up, or a piece failed."""
    a = _parsed(arguments)
    if a.action == "setup":
        return _set_up(a.peers or list(PEERS))
    if a.action == "report":
        _show(Ledger(a.file, 0.0))
        return 0
    return _run(a)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    setup = actions.add_parser("setup", help=f"make the peers' venvs below $GPULET_PEERS, here {peers_root()}")
    setup.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(PEERS))
    run = actions.add_parser("run", help="measure")
    run.add_argument("workload", choices=["W1", "W2", "W4", "all"])
    run.add_argument("--peers", type=_names, default=list(PEERS), help="such as mosec,ray; left out: all")
    run.add_argument("--minutes", type=float, default=50, help="nothing is begun that would not end within them (50)")
    run.add_argument("--runs", type=int, help="runs of W1, whole runs of a level of W4 (3)")
    run.add_argument("--turns", type=int, help="turns of W2 (5)")
    run.add_argument("--seconds", type=float, help="of a level of W4 (60); shorter where there are fewer minutes")
    run.add_argument("--quick", action="store_true", help="seconds each: no number means anything")
    files = run.add_mutually_exclusive_group()
    files.add_argument("--out", type=Path, help="file of the pieces; left out: a new one in out/")
    files.add_argument("--resume", type=Path, help="such a file of an earlier run of the same kind: go on")
    report = actions.add_parser("report", help="the table of a run")
    report.add_argument("file", type=Path)
    a = parser.parse_args(arguments)
    unknown = sorted(set(getattr(a, "peers", [])) - set(PEERS))
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return a


def _names(text: str) -> list[str]:
    """In the table's order, the most important first; what is unknown last."""
    order = list(PEERS)
    return sorted(filter(None, text.split(",")), key=lambda name: order.index(name) if name in order else len(order))


def _set_up(names: Sequence[str]) -> int:
    failed = 0
    for name in names:
        try:
            venvs.install(PEERS[name])
            print(f"{name}: ready in {PEERS[name].venv}", flush=True)
        except Unavailable as why:
            failed = 1
            print(f"{name}: {why}", flush=True)
    return failed


def _run(a: argparse.Namespace) -> int:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = a.resume or a.out or _DRAFTS / f"peers-{'quick-' * a.quick}{stamp}.jsonl"
    ledger = Ledger(path, monotonic() + 60 * a.minutes)
    adopt_orphans()
    signal.signal(signal.SIGTERM, _leave)
    peers = [name for name in a.peers if _is_ready(name)]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        bench = Bench(peers, _pace(a), ledger, Path(folder))
        for workload in ("W1", "W2", "W4") if a.workload == "all" else (a.workload,):
            {"W1": bench.w1, "W2": bench.w2, "W4": bench.w4}[workload]()
    _show(ledger)
    if not a.quick:
        record("peers", _summary(ledger))
    print(f"pieces: {path}; where some are missing, `--resume {path}`")
    return 1 if ledger.failures() else 0


def _leave(number: int, _: object) -> None:
    """Told to end: by the way on which servers are stopped."""
    sys.exit(128 + number)


def _is_ready(name: str) -> bool:
    """Says in one line why not."""
    try:
        venvs.check(PEERS[name])
    except Unavailable as why:
        print(f"{name}: left out, {why}", flush=True)
        return False
    return True


def _pace(a: argparse.Namespace) -> Pace:
    pace = QUICK if a.quick else Pace().within(a.minutes)
    told = {"runs": a.runs, "turns": a.turns, "level_s": a.seconds}
    return replace(pace, **{key: value for key, value in told.items() if value})


def _asked(ledger: Ledger) -> tuple[Report, list[str], list[str]]:
    """The report, its servers, the shapes of W4."""
    names = [OURS, *dict.fromkeys(n for peer in PEERS for n in ((peer, BATCHED) if peer == "mosec" else (peer,))), ECHO]
    shapes = [shape.name for shape in SHAPES]
    late = sorted({key.split("/")[2] for key in ledger.keys if key.startswith("W4/")} - {*shapes, *WAYS})
    return Report(ledger), names, [*shapes, *late]


def _show(ledger: Ledger) -> None:
    report, names, shapes = _asked(ledger)
    show(report, names, shapes, claims(report, PEERS, shapes))
    for key, why in ledger.failures().items():
        print(f"failed: {key}: {why}")


def _summary(ledger: Ledger) -> dict[str, object]:
    report, names, shapes = _asked(ledger)
    return summary(report, names, shapes, claims(report, PEERS, shapes))


if __name__ == "__main__":
    sys.exit(main())
