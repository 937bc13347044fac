"""Gpulets on an NVIDIA GPU by green contexts. `driver.py` alone speaks to CUDA; the rest stands on the ports."""
