"""Model repositories on disk: what is in them, in which versions, and what their configurations ask for.

Nothing is run here and no model runtime is imported: what a model takes and gives is told by the worker that loads it.
"""

from gpulet.repository.artifact import CPU_FORMATS, GPU_FORMATS, Artifact
from gpulet.repository.scanning import Scan, scan

__all__ = ["CPU_FORMATS", "GPU_FORMATS", "Artifact", "Scan", "scan"]
