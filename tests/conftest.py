"""Where third-party profile tables are, when they are there."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip("the third-party profile tables (../shared/data) are not here")
    return SHARED_DATA
