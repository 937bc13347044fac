"""A GPU for worker processes under test: its model `plain` ends the process on a row that begins with 666, `bad` never loads."""

import os
import struct

from gpulet.errors import ModelError
from gpulet.executors.cuda.imaginary import ImaginaryGraph, ImaginaryRuntime, open_imaginary

POISON = 666.0


class DeadlyGraph(ImaginaryGraph):
    def replay(self, rows, inputs):
        if struct.unpack_from("f", inputs[0][0])[0] == POISON:
            os._exit(1)
        return super().replay(rows, inputs)


class DeadlyRuntime(ImaginaryRuntime):
    graph = DeadlyGraph

    def load(self, model):
        if model == "bad":
            msg = "model bad: not a model"
            raise ModelError(msg)
        return super().load(model)


def open_deadly(models, kind):
    return open_imaginary(models, kind, DeadlyRuntime)
