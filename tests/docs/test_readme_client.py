"""The README's client example."""

import re
import subprocess
import sys

from servers import DIGITS, REPOSITORY, fleet, serve, table


def test_the_client_example_prints_what_stands_beside_it(tmp_path):
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "p.csv").write_text(table(["digits-small"], base=0.1, per_row=0.02))
    with serve(fleet(tmp_path, {"digits-small": (1000, 10)}, repository=DIGITS / "models")) as server:
        code = code.replace("localhost:8000", f"localhost:{server.port}")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30
        )
    assert done.stdout.strip() == re.search(r"print\(.*# (.*)", code)[1]
