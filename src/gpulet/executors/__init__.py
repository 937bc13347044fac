"""Executors carry out what the core commands, on simulated or real devices."""
