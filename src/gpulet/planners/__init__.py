"""Planners, one published algorithm a file. `systems.py` pairs them with dispatchers."""
