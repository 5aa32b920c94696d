"""Every query of every dashboard and rule, asked of a real Prometheus that scrapes two real regions under load."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.grafana.load import Load, loaded
from tests.grafana.queries import DASHBOARDS, RULES, asked
from tests.support.prometheus import Prometheus

pytestmark = [pytest.mark.needs("prometheus")]
LATE = "Since [[warm]] sections were brought in"
"""Images are brought in ahead at a moment of the first seconds that nobody knows: only the slow suite waits for it."""
SECONDS = 60.0
LOOK_BACK, STEP = 60.0, 0.5


def finite(series: list[dict[str, Any]]) -> bool:
    """Something was there at some time: a number, not the quotient of two nothings."""
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


async def until_none_is_left(load: Load, prometheus: Prometheus, look: Callable[[], list[str]]) -> list[str]:
    """Load the regions, scrape and look, until nothing is left or the time is over; return what is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SECONDS
    while True:
        await load.round()
        await asyncio.to_thread(prometheus.scrape)
        left = await asyncio.to_thread(look)
        if not left or loop.time() > deadline:
            return left


@pytest.mark.parametrize("without", [{LATE}, pytest.param(set(), marks=pytest.mark.slow)], ids=["at once", "all"])
async def test_no_panel_and_no_recorded_rule_is_empty_under_load(tmp_path: Path, without: set[str]) -> None:
    queries = [query for path in DASHBOARDS for query in asked(path) if query.panel not in without]
    pending = {str(query): query.substituted for query in queries}

    def look() -> list[str]:
        for name, expression in list(pending.items()):
            if finite(prometheus.query_range(expression, LOOK_BACK, STEP)):
                del pending[name]
        recorded = [rule for rule in prometheus.rules() if rule["type"] == "recording"]
        return [*pending, *(rule["name"] for rule in recorded if not prometheus.query(rule["name"]))]

    async with loaded(tmp_path) as load:
        targets = {mirror.folder.name: mirror.admin.removeprefix("http://") for mirror in (load.eu, load.us)}
        with Prometheus(tmp_path / "prometheus", targets, rules=RULES) as prometheus:
            await asyncio.to_thread(prometheus.ready)
            left = await until_none_is_left(load, prometheus, look)
            rules = prometheus.rules()
    assert left == [], "\n".join(left)
    assert len(rules) > len(DASHBOARDS)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
