"""How the suite is split into groups (tests/conftest.py), in a pytest of its own with two processes."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from tests.support.processes import run

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(number):
    pass
"""


def test_what_shares_daemons_and_what_shares_a_module_runs_in_one_process(tmp_path: Path) -> None:
    modules = ["cli/test_one.py", "cli/test_two.py", "real/test_three.py", "real/test_four.py"]
    for module in modules:
        file = tmp_path / "tests" / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    split = re.search(r"^SPLIT \?= (.*)-n 4(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert split is not None
    flags = [*split[1].split(), "-n", "2", *split[2].split()]
    output = run(
        [sys.executable, "-m", "pytest", "-v", "-p", "tests.conftest", "--rootdir", tmp_path, *flags, tmp_path],
        env={"PYTHONPATH": str(ROOT)},
    ).stdout
    ran: dict[str, list[str]] = defaultdict(list)
    for process, module in re.findall(r"\[(gw\d)\].* PASSED \S*tests/([\w/]+\.py)::", output):
        ran[module].append(process)
    assert {module: len(processes) for module, processes in ran.items()} == dict.fromkeys(modules, 4), output
    assert {len(set(processes)) for processes in ran.values()} == {1}
    assert ran["real/test_three.py"] == ran["real/test_four.py"]
