"""gpulet: a model server that gives every model a guaranteed share of a device."""

__version__ = "0.1.0"
