"""benchmarks/peers.py from its command line to its table, with gpulet and a bare gRPC echo but no peer."""

import json
import os
import subprocess
import sys

from servers import REPOSITORY

PEERS = REPOSITORY / "benchmarks" / "peers.py"


def test_w1_is_measured_written_down_and_not_measured_again(tmp_path):
    out = tmp_path / "run.jsonl"
    environment = {**os.environ, "GPULET_PEERS": str(tmp_path)}
    command = [sys.executable, PEERS, "run", "W1", "--quick", "--peers", "ray", "--minutes", "3"]

    def said(*more):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment, timeout=110, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = said("--out", out)
    assert "ray: left out, not set up: benchmarks/peers.py setup ray" in first
    pieces = {piece["key"]: piece for piece in map(json.loads, out.read_text().splitlines())}
    assert list(pieces) == ["W1/gpulet/0", "W1/grpcio echo/0"]
    for piece, wire in (("W1/gpulet/0", "http"), ("W1/grpcio echo/0", "grpc")):
        assert pieces[piece][f"{wire}_errors"] == 0
        assert pieces[piece][f"{wire}_server_cpu_us"] > 0
        assert pieces[piece][f"{wire}_client_cpu_us"] > 0
    again = said("--resume", out)
    assert len(out.read_text().splitlines()) == 2
    assert first.partition("W1 identity")[2] == again.partition("W1 identity")[2]
