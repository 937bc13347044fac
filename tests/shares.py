"""An imaginary GPU for worker processes under test that is as wide as the share which their environment gives them.

Under MPS: the percentage, while the daemon of the pipe directory lives, whose client the process is; without a daemon all of
it, as on a real GPU. In MIG: what `MIG_FOLDER` has noted of the instance in CUDA_VISIBLE_DEVICES, where the process is noted too.
"""

import json
import os
import socket
import threading
from pathlib import Path

from gpulet.executors.cuda.fake import FakeCudaDriver, topology_of
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime


def open_share(models, kind):
    known = {model.name: ImaginaryModel() for model in models}

    def opened():
        driver = FakeCudaDriver(topology_of(width(kind.sms)))
        return driver, ImaginaryRuntime(driver, known)

    return opened


def width(whole):
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    if device.startswith("MIG-"):
        folder = Path(os.environ["MIG_FOLDER"])
        (folder / str(os.getpid())).write_text(device)
        return json.loads((folder / "sms.json").read_text())[device]
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if not pipe or not attach(f"{pipe}/control_privileged"):
        return whole
    return int(whole * float(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100")) / 100)


def attach(path):
    daemon = socket.socket(socket.AF_UNIX)
    try:
        daemon.connect(path)
        daemon.sendall(b"attach %d" % os.getpid())
        daemon.recv(100)
    except OSError:
        return False
    threading.Thread(target=die_with, args=(daemon,), daemon=True).start()
    return True


def die_with(daemon):
    """A client does not outlive its daemon."""
    if not daemon.recv(1):
        os._exit(1)
