"""Where third-party profile tables are, when they are there, and the command line in this process."""

import sys
from pathlib import Path

import pytest

from gpulet import cli

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip("the third-party profile tables (../shared/data) are not here")
    return SHARED_DATA


@pytest.fixture
def gpulet(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpulet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        done = capsys.readouterr()
        return stopped.value.code or 0, done.out, done.err

    return run
