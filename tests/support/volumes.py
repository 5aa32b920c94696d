"""Small volumes of their own, and what becomes of a test where something that it needs is not to be had."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRE = "ENTREPOT_REQUIRE_TOOLS"


def lacking(what: str) -> NoReturn:
    """Skip the test, or fail it where everything that the suite uses is required."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"missing here: {what} ({REQUIRE}=1 requires it)", pytrace=False)
    pytest.skip(f"missing here: {what}")


@contextmanager
def mounted(folder: Path, *words: str | Path) -> Iterator[Path]:
    """Mount what `words` say at a folder, which is made; take it away again at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *words, folder], capture_output=True, text=True)
    if done.returncode != 0:
        lacking(f"the right to mount ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """Have a volume of so many bytes at a folder."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder
