"""The NVML port: the fake and the real adapter, through the real nvidia-ml-py, answer alike."""

import ast
import inspect
import sys
from pathlib import Path

import pynvml
import pytest

from fake_nvml import DRIVER, FakeNvml, below_pynvml, error
from gpulet.errors import NvmlError, Unusable
from gpulet.executors import nvmllibrary
from gpulet.executors.nvml import NO_DRIVER, Code, Metric, MigMode, Usage, Xid
from gpulet.executors.nvmllibrary import CarvingLibrary, Library, open_for_carving, open_nvml
from gpulet.mig import GEOMETRIES
from gpulet.units import GIB

SOURCE = Path(nvmllibrary.__file__)
KINDS = ("h200-141gb", "a100-40gb", "a30", "v100")


@pytest.fixture
def fake():
    return FakeNvml(*KINDS)


@pytest.fixture(params=["port", "pynvml"])
def both(request, fake, monkeypatch):
    """The fake itself, and our adapter on the real pynvml on the fake's C functions."""
    if request.param == "port":
        yield fake
        return
    with below_pynvml(monkeypatch, fake) as library:
        opened = open_for_carving(fake.allowed)
        yield opened
        opened.close()
        assert library.opened == 0


def offered(port, gpu, label):
    return next(o for o in port.types(gpu) if o.label == label)


def test_gpus_are_read_with_their_mig_mode(both, fake):
    fake.state[1].pending = MigMode.OFF
    assert both.versions() == (DRIVER, 13000)
    assert [(g.index, g.mig, g.pending) for g in both.gpus()] == [
        (0, MigMode.ON, MigMode.ON),
        (1, MigMode.ON, MigMode.OFF),
        (2, MigMode.ON, MigMode.ON),
        (3, MigMode.ABSENT, MigMode.ABSENT),
    ]
    assert (both.gpus()[0].memory, both.gpus()[0].used) == (141 * GIB, GIB)


@pytest.mark.parametrize("gpu", [0, 1, 2])
def test_types_are_those_of_our_tables(both, gpu):
    geometry = GEOMETRIES[KINDS[gpu]]
    assert {(o.label, o.slices, o.span, o.starts) for o in both.types(gpu)} == {
        (t.label, t.slices, t.span, t.starts) for t in geometry.types
    }
    for t in geometry.types:
        assert not t.sms or offered(both, gpu, t.label).sms == t.sms


def test_an_instance_is_made_found_and_ended(both):
    number = both.create_instance(0, offered(both, 0, "3g.71gb"), 4)
    both.create_compute(0, number)
    (made,) = both.instances(0)
    assert (made.label, made.slices, made.start, made.span) == ("3g.71gb", 3, 4, 4)
    assert made.uuid.startswith("MIG-")
    (seen,) = both.mig_devices(0)
    assert (seen.uuid, seen.label, seen.instance, seen.slices, seen.sms) == (made.uuid, "3g.71gb", number, 3, 60)
    both.destroy_compute(0, number, made.computes[0].number)
    assert both.instances(0)[0].uuid == ""
    both.destroy_instance(0, number)
    assert both.instances(0) == both.mig_devices(0) == ()


def test_an_instance_whose_number_cannot_be_read_does_not_stay(fake, monkeypatch):
    with below_pynvml(monkeypatch, fake) as library:
        opened = open_for_carving(fake.allowed)
        offer = offered(opened, 0, "3g.71gb")

        call = "nvmlGpuInstanceGetInfo"

        def lost(*_):
            raise error(call, Code.UNKNOWN)

        monkeypatch.setattr(library, call, lost)
        with pytest.raises(NvmlError, match=r"nvmlGpuInstanceGetInfo: unknown \(999\)"):
            opened.create_instance(0, offer, 4)
    assert fake.standing() == set()


def test_an_instance_shared_out_has_no_uuid_of_its_own(both, fake):
    number = fake.put(0, "2g.35gb", 0, whole=False)
    for _ in range(2):
        fake.compute(0, number, 1)
    assert [c.slices for c in both.instances(0)[0].computes] == [1, 1]
    assert both.instances(0)[0].uuid == ""
    assert [d.label for d in both.mig_devices(0)] == ["1c.2g.35gb", "1c.2g.35gb"]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda n: n.create_instance(0, offered(n, 0, "2g.35gb"), 1), Code.INVALID_ARGUMENT),
        (lambda n: n.create_instance(0, offered(n, 0, "4g.71gb"), 0), Code.INSUFFICIENT_RESOURCES),
        (lambda n: n.destroy_instance(0, 1), Code.IN_USE),
        (lambda n: n.destroy_compute(0, 1, 0), Code.IN_USE),
        (lambda n: n.destroy_instance(0, 42), Code.NOT_FOUND),
        (lambda n: n.destroy_compute(0, 1, 42), Code.NOT_FOUND),
        (lambda n: n.usage(0), Code.NOT_SUPPORTED),
    ],
)
def test_errors_carry_nvmls_code_and_the_call(both, fake, call, code):
    fake.put(0, "2g.35gb", 0, pid=4711)
    with pytest.raises(NvmlError, match=r"nvml\w*: .* \(\d+\)") as refused:
        call(both)
    assert refused.value.code == code
    assert refused.value.exit_code == 3


def test_without_privileges_mig_devices_are_read_and_instances_are_not(both, fake):
    fake.put(0, "1g.18gb", 3)
    fake.is_root = False
    assert [d.sms for d in both.mig_devices(0)] == [16]
    with pytest.raises(NvmlError) as refused:
        both.instances(0)
    assert refused.value.code == Code.NO_PERMISSION


@pytest.mark.parametrize("opens", [lambda fake: fake, lambda fake: CarvingLibrary(pynvml, ["GPU-another"])])
def test_a_gpu_that_nobody_named_is_not_cut(opens, fake, monkeypatch):
    fake.put(0, "1g.18gb", 0)
    fake.allowed = set()
    with below_pynvml(monkeypatch, fake):
        refuses_to_cut(opens(fake))
    assert fake.calls == []


def refuses_to_cut(both):
    for call in (
        lambda: both.create_instance(0, offered(both, 0, "1g.18gb"), 1),
        lambda: both.create_compute(0, 1),
        lambda: both.destroy_compute(0, 1, 0),
        lambda: both.destroy_instance(0, 1),
    ):
        with pytest.raises(Unusable, match="may not be cut"):
            call()


def test_nvml_opened_for_reading_cannot_cut():
    mutating = {"create_instance", "create_compute", "destroy_compute", "destroy_instance"}
    assert not mutating & set(dir(Library))


def test_load_slowdowns_processes_and_faults_are_read(both, fake):
    fake.state[0].mig = MigMode.OFF
    fake.reasons = ("power cap", "hardware thermal slowdown")
    fake.xids = [Xid(1, 94)]
    fake.put(1, "1g.5gb", 6, pid=7)
    assert both.usage(0) == Usage(37, 21)
    assert both.slowed_by(0) == ("power cap", "hardware thermal slowdown")
    assert both.pids(fake.mig_devices(1)[0].uuid) == (7,)
    assert both.next_xid(0) == Xid(1, 94)
    assert both.next_xid(0) is None


def test_counters_are_read_over_a_time_and_samples_are_given_back(both, fake):
    waited = []
    found = both.measured(0, lambda: waited.append(fake.samples))
    assert found == {m: m / 2 for m in Metric if m is not Metric.DRAM_CACHE_HIT}
    assert len(waited) == 1
    with pytest.raises(NvmlError) as refused:
        both.measured(1, lambda: None)
    assert refused.value.code == Code.NOT_SUPPORTED
    assert fake.samples == 0


def test_no_driver_is_a_typed_error(fake, monkeypatch):
    fake.fail("nvmlInit", Code.DRIVER_NOT_LOADED)
    with below_pynvml(monkeypatch, fake), pytest.raises(NvmlError) as refused:
        open_nvml()
    assert refused.value.code in NO_DRIVER


def test_no_package_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unusable, match=r"pip install 'gpulet\[nvml\]'"):
        open_nvml()


def calls_in_source():
    """Every function of pynvml that the adapter names, with how many arguments."""
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, *arguments = node.args or [None]
            if node.func.attr in {"call", "_unless_absent"} and isinstance(name, ast.Constant):
                yield name.value, len(arguments)


def test_every_call_has_the_name_and_arity_of_the_real_package():
    found = set(calls_in_source())
    assert len(found) > 20
    for name, arity in found:
        inspect.signature(getattr(pynvml, name)).bind(*range(arity))
    # The one call whose name stands in a variable.
    inspect.signature(pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo).bind(*range(3))


def test_every_constant_and_structure_is_in_the_real_package():
    tree = ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8")))
    used = {n.attr for n in tree if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self._nvml"}
    assert {"NVMLError", "NVML_GPU_INSTANCE_PROFILE_COUNT", "c_nvmlGpuInstance_t"} <= used
    assert [name for name in used if not hasattr(pynvml, name)] == []


def test_codes_are_those_of_the_real_package():
    for code in Code:
        name = "NVML_SUCCESS" if code is Code.SUCCESS else f"NVML_ERROR_{code.name}"
        assert getattr(pynvml, name) == code
