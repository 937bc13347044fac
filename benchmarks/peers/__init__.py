"""The parts of `benchmarks/peers.py`: other servers beside ours, under the same load."""
