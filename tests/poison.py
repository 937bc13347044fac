"""GPUs for worker processes under test, which is told of them by its environment.

Of `open_deadly` the model `plain` ends the process on a row that begins with 666, and `bad` never loads. `open_faulty` has
the faults in FAULTS.
"""

import json
import os
import struct
import time

from gpulet.device import find_kind
from gpulet.errors import ModelError
from gpulet.executors.cuda.imaginary import ImaginaryGraph, ImaginaryRuntime, open_imaginary

POISON = 666.0
ENDLESS = 777.0


class DeadlyGraph(ImaginaryGraph):
    def replay(self, rows, inputs):
        if struct.unpack_from("f", inputs[0][0])[0] == POISON:
            os._exit(1)
        if struct.unpack_from("f", inputs[0][0])[0] == ENDLESS:
            time.sleep(60)  # as a kernel that hangs: nothing ends it but its process
        return super().replay(rows, inputs)


class DeadlyRuntime(ImaginaryRuntime):
    graph = DeadlyGraph

    def error(self, key, graph):
        return 1.0 if key.model == "off" else super().error(key, graph)

    def load(self, model):
        if model == "bad":
            msg = "model bad: not a model"
            raise ModelError(msg)
        return super().load(model)


def open_deadly(models, kind):
    return open_imaginary(models, kind, DeadlyRuntime)


def open_faulty(models, kind):
    """FAULTS: a JSON object of `Faults`; `dies`: the process ends in place of that call."""
    opened = open_imaginary(models, kind if kind.sms else find_kind("h200-141gb"))
    faults = json.loads(os.environ["FAULTS"])

    def faulty():
        driver, runtime = opened()
        if call := faults.pop("dies", ""):
            setattr(driver, call, lambda *_: os._exit(1))
        for fault, value in faults.items():
            setattr(driver.faults, fault, value)
        return driver, runtime

    return faulty
