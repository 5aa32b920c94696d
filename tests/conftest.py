"""What all tests share: the `needs` and `slow` markers, how the suite is split, and the list of what was left out."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict

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
    ("tests/scenarios/test_bundle_", "bundles"),
    ("tests/scenarios/", "scenarios"),
    ("tests/bench/", "scenarios"),
    ("tests/bucket/", "bucket"),
)
"""What runs in one process where pytest-xdist has several, the longest first: daemons are started once, and of what
measures time no two run at once. Any other module is a group of its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(*programs): skip where a program is missing ('root' stands for the right to mount); "
        f"fail instead when {_REQUIRE}=1",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist") and config.getoption("dist") == "loadgroup":
        _split(items)
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def _split(items: list[pytest.Item]) -> None:
    """Name every test's group, and put those first that take long: what is begun last should be short."""
    orders = {}
    for item in items:
        module = item.nodeid.partition("::")[0]
        found = [(order, name) for order, (path, name) in enumerate(_TOGETHER) if module.startswith(path)]
        orders[item], name = found[0] if found else (len(_TOGETHER), module)
        item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=orders.__getitem__)


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
