"""Dispatchers, one published policy a file. `systems.py` pairs them with planners."""
