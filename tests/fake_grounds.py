"""The grounds of MPS and MIG for real worker processes without a GPU: below them a fake control binary, a fake NVML."""

import json
import os
import tempfile
from pathlib import Path

from fake_mps import binary, install
from fake_nvml import FakeNvml
from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.executors.daemons import Daemons
from gpulet.executors.migground import MadeFile, MigGround, Permission
from gpulet.executors.mps import MpsGround
from gpulet.executors.nvml import MigMode
from gpulet.executors.process import Program
from gpulet.plan import Gpulet, Plan
from gpulet.units import MIB, MS

KIND = "h200-141gb"
GPU = "GPU-00000000-fake"
SHARES = Program("gpulet.executors.cuda.worker", ("shares:open_share",), 8, MIB)


class LivingNvml(FakeNvml):
    """One GPU whose instances and their SMs are noted in a folder, where workers note which of them they use."""

    def __init__(self, folder, **state):
        super().__init__(KIND, **state)
        self.folder = folder
        self.holders = Holders(folder)

    def compute(self, gpu, number, slices):
        super().compute(gpu, number, slices)
        (self.folder / "sms.json").write_text(json.dumps({d.uuid: d.sms for d in self.mig_devices(gpu)}))


class Holders:
    """As NVML lists processes: those that live."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, uuid):
        noted = [path for path in self.folder.iterdir() if path.name.isdecimal() and path.read_text() == uuid]
        return tuple(int(path.name) for path in noted if Path("/proc", path.name).exists())


def mps_ground(folder):
    """And the folder of its control binary, whose `told` has what its daemons were asked."""
    install(folder)
    return MpsGround(lambda: FakeNvml(KIND, mig=MigMode.OFF), Daemons(binary(folder), Path(tempfile.gettempdir())))


def mig_ground(folder, **state):
    nvml = LivingNvml(folder, **state)
    os.environ["MIG_FOLDER"] = str(folder)  # which workers inherit; each test has its own
    permission = Permission([GPU], lambda _: nvml, MadeFile(folder / "made.json"))
    return MigGround(lambda: nvml, permission), nvml


def mps_plan(*shares, turns=()):
    device = Device(0, find_kind(KIND), Mechanism.MPS)
    sizes = [mps_size(device.kind, share) for share in shares]
    return Plan((device,), tuple(Gpulet(n, 0, size, 0, 10 * MS, turns) for n, size in enumerate(sizes)))


def mig_plan(*spots, turns=()):
    device = Device(0, find_kind(KIND), Mechanism.MIG)
    sizes = {size.label: size for size in device.sizes()}
    return Plan((device,), tuple(Gpulet(n, 0, sizes[label], at, 10 * MS, turns) for n, (label, at) in enumerate(spots)))
