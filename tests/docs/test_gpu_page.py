"""The page on GPUs: its fleet files are read, its lines of doctor are doctor's, its numbers are the code's."""

import re
import tomllib

import pytest

from gpulet.device import Mechanism
from gpulet.errors import ModelError
from gpulet.executors.cuda.formats import Runtimes
from gpulet.executors.cuda.graphs import TOLERANCE
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.mps import CONTEXT_MEMORY
from gpulet.executors.stations import LONGEST_PAUSE_S, Patience
from gpulet.fleetfile import wanted
from gpulet.repository import GPU_FORMATS
from gpulet.units import GIB, SECOND
from servers import REPOSITORY, run

PAGE = (REPOSITORY / "docs" / "gpu.md").read_text()
FLEETS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("place", range(4))
def test_every_fleet_file_is_one(tmp_path, place):
    model = tmp_path / "models" / "resnet50" / "1" / "model.pt2"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"")
    (tmp_path / "fleet.toml").write_text(FLEETS[place])
    want = wanted(tmp_path / "fleet.toml")
    mechanisms = [Mechanism.GREEN, Mechanism.MPS, Mechanism.MIG, Mechanism.WHOLE]
    assert [d.mechanism for d in want.devices] == [mechanisms[place]]
    assert want.executor == "gpu"
    assert (want.site is not None) == (place == 0)
    assert len(FLEETS) == 4


def timeless(text):
    return re.sub(r"[\d.]+ ms", "N ms", text)


def test_doctor_says_what_the_page_shows(tmp_path):
    shown = re.search(r"```\n(ok  green.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "fleet.toml").write_text(FLEETS[0].split("[[models]]", maxsplit=1)[0] + 'executor = "rehearsal"\n')
    code, out, _ = run("doctor", tmp_path / "fleet.toml")
    assert code == 0
    assert timeless(shown) in timeless(out)


def test_the_formats_are_those_that_are_served_in_their_order():
    assert tuple(re.findall(r"^\| `(model\.\w+)` \|", PAGE, re.MULTILINE)) == GPU_FORMATS
    with pytest.raises(ModelError) as refused:
        Runtimes({"m": ModelSource("m/1/model.plan")}, {}).load("m")
    assert "chose its kernels for the whole GPU when it was built" in str(refused.value)
    assert "chose its kernels for the whole GPU when it was built" in " ".join(PAGE.split())


def test_the_extra_that_it_names_has_what_it_says():
    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    assert {re.split(r"[>=<]", need)[0] for need in extra} == {"torch", "cuda-bindings", "nvidia-ml-py"}


def test_numbers_are_those_of_the_code():
    patience = Patience()
    for words, number in {
        rf"within {100 * TOLERANCE:g} % of the whole GPU": TOLERANCE,
        rf"takes {patience.soft} times its expected time": patience.soft,
        rf"after {patience.hard} times, and never before {patience.least // SECOND} s": patience.hard,
        rf"up to {LONGEST_PAUSE_S:g} s": LONGEST_PAUSE_S,
        rf"with {CONTEXT_MEMORY // GIB} GiB for CUDA": CONTEXT_MEMORY,
    }.items():
        assert words in " ".join(PAGE.split()), number
