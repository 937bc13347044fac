"""What workers of a site import before they are told of its models, and that none of it starts CUDA."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from gpulet.executors.gpus import REHEARSED, RUNTIMES
from gpulet.executors.process import CPU
from gpulet.fleetfile import open_site
from gpulet.grounds import program_of
from gpulet.units import MIB

ASKS = """
import importlib, json, sys
import torch
asked = []
for name in ("is_available", "device_count", "_lazy_init", "get_device_properties", "current_device"):
    setattr(torch.cuda, name, lambda *given, name=name: asked.append(name))
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps(asked))
"""


def site_with(folder, *files, device='kind = "h200-141gb"\nmechanism = "green"\nexecutor = "rehearsal"'):
    for n, file in enumerate(files):
        (folder / "models" / f"m{n}" / "1").mkdir(parents=True)
        (folder / "models" / f"m{n}" / "1" / file).write_bytes(b"")
    (folder / "fleet.toml").write_text(f'[[devices]]\n{device}\n[server]\nrepository = "models"\n')
    return open_site(folder / "fleet.toml")


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        (["model.onnx"], RUNTIMES[".onnx"]),
        (["model.pt", "model.pt2"], (*RUNTIMES[".pt"], "torch.export._trace")),
        (["model.plan"], ()),
    ],
)
def test_workers_import_the_runtimes_of_their_sites_models_alone(tmp_path, files, modules):
    program = program_of(site_with(tmp_path, *files))
    assert program == replace(REHEARSED, arguments=(*REHEARSED.arguments, *modules))


def test_workers_of_cores_import_what_they_always_do(tmp_path):
    program = program_of(site_with(tmp_path, "model.onnx", device='kind = "cpu"\ncores = 1'))
    assert program == replace(CPU, standby_bytes=256 * MIB)


def test_where_memory_is_bounded_no_model_stands_by(tmp_path):
    device = 'kind = "cpu"\ncores = 1\n[limits]\nmemory_mib = 100'
    assert program_of(site_with(tmp_path, "model.onnx", device=device)) == CPU


@pytest.mark.slow
def test_what_is_imported_ahead_of_the_environment_asks_cuda_for_nothing():
    modules = dict.fromkeys(name for names in RUNTIMES.values() for name in names)
    done = subprocess.run([sys.executable, "-c", ASKS, *modules], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
