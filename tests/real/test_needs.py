"""The markers of tests/conftest.py, in a pytest of their own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.processes import run

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.needs("sh", "no-such-program")
def test_needs_it():
    pass

@pytest.mark.needs("sh")
def test_needs_what_is_there():
    pass

@pytest.mark.slow
def test_slow():
    pass
"""


def pytest_on(folder: Path, *flags: str, require: str = "0") -> tuple[int, str]:
    """Run TESTS in `folder` with tests/conftest.py loaded."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    done = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", folder, *flags, folder],
        env={"PYTHONPATH": str(ROOT), "ENTREPOT_REQUIRE_TOOLS": require},
        ok=False,
    )
    return done.returncode, done.stdout


def test_a_missing_program_skips_and_the_summary_names_it(tmp_path: Path) -> None:
    code, output = pytest_on(tmp_path)
    assert code == 0
    assert "1 passed, 1 skipped, 1 deselected" in output
    assert "left out for missing programs" in output
    assert "no-such-program: 1 tests" in output


def test_a_missing_program_fails_where_all_are_required(tmp_path: Path) -> None:
    code, output = pytest_on(tmp_path, require="1")
    assert code == 1
    assert "missing here: no-such-program (ENTREPOT_REQUIRE_TOOLS=1" in output


def test_slow_tests_run_only_when_asked_for(tmp_path: Path) -> None:
    assert "2 passed, 1 skipped" in pytest_on(tmp_path, "--slow")[1]
