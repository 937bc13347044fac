"""What the documentation says is so."""

import json
import os
import re
import subprocess
import sys

import pytest

from servers import REPOSITORY, command, run

PAGE = (REPOSITORY / "docs" / "your-dispatcher.md").read_text()
EMULATED = REPOSITORY / "examples" / "emulated"


def test_your_dispatcher_runs_as_the_page_shows_it(tmp_path):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    assert len(code.splitlines()) <= 40
    (tmp_path / "my_dispatcher.py").write_text(code)
    typed = re.search(r"gpulet (simulate .*)", PAGE)[1].replace("examples/emulated", str(EMULATED)).split()
    done = subprocess.run(
        command(*typed, "--json"), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    reports = json.loads(done.stdout)
    assert set(reports) == {"gpulet", "my_dispatcher:SYSTEM"}
    mine = reports["my_dispatcher:SYSTEM"]["total"]
    assert mine["served"] > 1000
    assert mine["lost"] == 0
    assert mine["mean_batch"] == 1


def test_every_hop_of_the_architecture_page_exists():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    hops = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    assert len(hops) >= 12
    for path, name in hops:
        source = (REPOSITORY / "src" / "gpulet" / path).read_text()
        for part in name.split("."):
            assert re.search(rf"(class|def) {part}\b", source), f"{path}:{name}"


def test_links_and_files_that_pages_name_exist():
    for page in [*(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


COMMANDS = [
    "serve",
    "profile",
    "import-profile",
    "import-scenario",
    "plan",
    "capacity",
    "simulate",
    "bench",
    "replay",
    "doctor",
    "config show",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name):
    code, out, _ = run(*name.split(), "--help")
    assert code == 0
    assert f"Example: gpulet {name}" in out


def test_the_front_end_process_imports_no_model_runtime():
    program = "import sys, gpulet.cli; print([m for m in ('onnxruntime', 'torch', 'onnx', 'pynvml', 'cuda') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_tracked_file_names_a_path_of_a_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = (os.fsencode(REPOSITORY.parent) + b"/", os.fsencode(os.path.expanduser("~")) + b"/")  # noqa: PTH111
    for name in listed.stdout.split():
        data = (REPOSITORY / name).read_bytes()
        assert not any(needle in data for needle in needles if len(needle) > 3), name
