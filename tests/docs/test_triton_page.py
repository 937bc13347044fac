"""docs/triton.md says what the code does with every field, and its example is one that is read."""

import re

from gpulet.config import ServerSection
from gpulet.repository.controlling import Control
from gpulet.repository.pbtxt import parse_pbtxt
from gpulet.repository.taking import wishes_of
from gpulet.repository.verdicts import VERDICTS
from gpulet.units import MS
from servers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "triton.md").read_text()


def test_the_table_of_fields_is_the_programs_own():
    shown = re.findall(r"^\| `([a-z_.]+)` \| (used|not used|refused) \| (.+) \|$", PAGE, re.MULTILINE)
    assert shown == [(path, str(verdict.use), verdict.about) for path, verdict in VERDICTS.items()]


def test_the_objectives_of_the_page_are_read():
    examples = [line for line in re.findall(r"`([a-z_]+ \{ .+ \})`", PAGE) if "25" in line]
    assert [wishes_of(parse_pbtxt(text)[0]).slo for text in examples] == [25 * MS, 25 * MS]


def test_every_control_mode_and_its_keys_are_on_the_page():
    assert set(re.findall(r'^\| `"([a-z]+)"`', PAGE, re.MULTILINE)) == {str(mode) for mode in Control}
    assert all(f"`{key}`" in PAGE for key in ("load_models", "poll_s") if key in ServerSection.model_fields)
