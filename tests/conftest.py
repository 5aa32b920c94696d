"""What all tests share: the `needs` and `slow` markers, how the suite is split, and the list of what was left out."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No example is wrong because the machine stood still.
settings.register_profile("entrepot", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("entrepot")

_REQUIRE = "ENTREPOT_REQUIRE_TOOLS"
_MISSING = "missing here: "
_TOGETHER = (
    ("tests/real/", "real programs"),
    ("tests/scenarios/test_workers.py", "workers"),
    ("tests/scenarios/test_fleet.py", "fleet"),
    ("tests/scenarios/test_fleet_records.py", "fleet"),
    ("tests/bucket/", "bucket"),
    ("tests/scenarios/test_herd.py", "pace"),
    ("tests/scenarios/test_loop_lag.py", "pace"),
    ("tests/bench/", "pace"),
    ("tests/dashboard/", "browser"),
    ("tests/scenarios/", ""),
    ("tests/cache/", ""),
)
"""What runs in one process where pytest-xdist has several, the longest first: daemons are started once, and of what
measures time no two run at once. Without a name, and wherever else, a module is a group of its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(*programs): skip where a program is missing ('root' stands for the right to mount); "
        f"fail instead when {_REQUIRE}=1",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist: what is begun last should be short
        items.sort(key=lambda item: _group(item.nodeid)[0])
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups with `--dist loadscope`: `loadgroup` heeds no marks where node ids cannot be changed."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    scheduling: Any = LoadScopeScheduling(config, log)
    scheduling._split_scope = lambda nodeid: _group(nodeid)[1]
    return scheduling


def _group(nodeid: str) -> tuple[int, str]:
    """Return when the group of a test is handed out, and its name."""
    module = nodeid.partition("::")[0]
    for order, (path, name) in enumerate(_TOGETHER):
        if module.startswith(path):
            return order, name or module
    return len(_TOGETHER), module


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = {str(program) for mark in item.iter_markers("needs") for program in mark.args}
    missing = sorted(program for program in wanted if not _present(program))
    if not missing:
        return
    reason = _MISSING + ", ".join(missing)
    if os.environ.get(_REQUIRE) == "1":
        pytest.fail(f"{reason} ({_REQUIRE}=1 requires them; deploy/apt-packages.txt names the packages)", pytrace=False)
    pytest.skip(reason)


def _present(program: str) -> bool:
    if program == "root":
        return os.geteuid() == 0
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left_out: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, programs = reason.partition(_MISSING)
        if found:
            left_out[programs].append(report.nodeid)
    if left_out:
        terminalreporter.section("left out for missing programs (deploy/apt-packages.txt)", yellow=True)
        for programs, tests in sorted(left_out.items()):
            terminalreporter.line(f"{programs}: {len(tests)} tests, the first is {tests[0]}", yellow=True)
