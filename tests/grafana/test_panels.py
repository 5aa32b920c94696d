"""Every query of every dashboard and rule, asked of a real Prometheus that scrapes two real regions under load."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from tests.grafana.load import Load, loaded
from tests.grafana.queries import DASHBOARDS, asked

pytestmark = [pytest.mark.needs("prometheus")]
LATER = {
    "entrepot_warm_last_success_timestamp_seconds": "images are brought in at a moment of the first seconds, by chance",
    "entrepot_worker_": "one process has no workers",
    'outcome="broken"': "a pull is taken for broken when nothing has come of it for some seconds",
}
"""What the everyday suite need not see, and why: nothing is left out of the slow one."""
SECONDS = 60.0
LOOK_BACK, STEP = 60.0, 0.5


def finite(series: list[dict[str, Any]]) -> bool:
    """Something was there at some time: a number, not the quotient of two nothings."""
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


async def until_none_is_left(load: Load, look: Callable[[], list[str]]) -> list[str]:
    """Load the regions, scrape and look, until nothing is left or the time is over; return what is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SECONDS
    while True:
        await load.round()
        await asyncio.to_thread(load.prometheus.scrape)
        left = await asyncio.to_thread(look)
        if not left or loop.time() > deadline:
            return left


@pytest.mark.parametrize(
    ("workers", "later"), [(1, LATER), pytest.param(2, (), marks=pytest.mark.slow)], ids=["one process", "workers"]
)
async def test_no_panel_and_no_recorded_rule_is_empty_under_load(
    tmp_path: Path, workers: int, later: Collection[str]
) -> None:
    queries = [query for path in DASHBOARDS for query in asked(path)]
    pending = {str(query): query.bare for query in queries if not any(name in query.bare for name in later)}

    def look() -> list[str]:
        for name, expression in list(pending.items()):
            if finite(load.prometheus.query_range(expression, LOOK_BACK, STEP)):
                del pending[name]
        recorded = [rule for rule in load.prometheus.rules() if rule["type"] == "recording"]
        return [*pending, *(rule["name"] for rule in recorded if not load.prometheus.query(rule["name"]))]

    async with loaded(tmp_path, workers=workers) as load:
        left = await until_none_is_left(load, look)
        rules = load.prometheus.rules()
        for query in queries:
            load.prometheus.query(query.substituted)
    assert left == [], "\n".join(left)
    assert len(rules) > len(DASHBOARDS)
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []
