"""Who may collect in the bucket: no node that may not know what the others want, as they would miss it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from entrepot import fleet
from entrepot.collecting import CollectFailed, Deleted, collect_bucket
from entrepot.config import Config, SecretUrl
from metrics.events import ignore
from proxy.bucket.collector import Turn
from proxy.oci.errors import Unavailable
from proxy.store.store import Store
from sync.exchange import Standing

OTHER = "http://other:5000"


@pytest.fixture(autouse=True)
def lease(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def granted(leases: object, key: str) -> AsyncIterator[asyncio.Event]:
        yield asyncio.Event()

    monkeypatch.setattr(fleet, "sole", granted)


class Clock:
    """Monotonic seconds, which a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def turn(clock: Clock, *standings: Standing, behind: float = 0.0, incompatible: tuple[str, ...] = ()) -> Turn:
    """The turn of a node that knows so much of others."""
    urls = [f"{OTHER}{number}" for number in range(len(standings))]
    exchange = SimpleNamespace(standings=dict(zip(urls, standings, strict=True)), behind=dict.fromkeys(urls, behind))
    nodes = SimpleNamespace(incompatible=[SimpleNamespace(url=url) for url in incompatible])
    node = SimpleNamespace(exchange=exchange, nodes=nodes)
    return fleet.turn_of(cast(Any, None), cast(Any, node), clock)


ALL = Standing(0, 0.0)


async def test_a_node_that_has_all_records_collects_once_it_knows_the_others() -> None:
    clock = Clock()
    ours = turn(clock, ALL, ALL)
    with pytest.raises(Unavailable, match="just started"):
        async with ours():
            pass
    clock.now += fleet.BEHIND_SECONDS
    async with ours() as granted:
        assert granted


@pytest.mark.parametrize(
    ("records", "behind", "incompatible", "why"),
    [
        (None, 0.0, (), "has not all records of http://other:50000,"),
        (7, fleet.BEHIND_SECONDS + 1, (), "has not all records of http://other:50000,"),
        (0, 0.0, (OTHER,), "has not all records of http://other:5000,"),
    ],
)
async def test_a_node_that_has_not_all_records_collects_nothing(
    records: int | None, behind: float, incompatible: tuple[str, ...], why: str
) -> None:
    clock = Clock()
    ours = turn(clock, Standing(records, 0.0), behind=behind, incompatible=incompatible)
    clock.now += fleet.BEHIND_SECONDS
    with pytest.raises(Unavailable, match=re.escape(why)):
        async with ours():
            pass


async def test_gc_is_refused_where_no_mirror_of_the_fleet_runs_and_where_another_node_collects(
    tmp_path: Path, store: Store, url: str
) -> None:
    @asynccontextmanager
    async def taken() -> AsyncIterator[bool]:
        yield False

    config = Config(data=tmp_path / "data", upstreams=(), redis=SecretUrl("redis://127.0.0.1:9"), store=url)
    for right, why in ((None, "does not run"), (taken, "another node collects")):
        with pytest.raises(CollectFailed, match=why):
            await collect_bucket(config, store, ignore, right, list[Deleted]().append, dry_run=False)


async def test_gc_is_refused_where_the_catalog_knows_other_nodes_whatever_is_configured(
    tmp_path: Path, store: Store, url: str
) -> None:
    await store.catalog.write(
        lambda transaction: transaction.connection.execute(
            "INSERT INTO cursor (epoch, node, seq, at) VALUES ('e', 'http://10.0.0.1:5000', 1, 0)"
        )
    )
    config = Config(data=tmp_path / "data", upstreams=(), store=url)
    with pytest.raises(CollectFailed, match="does not run"):
        await collect_bucket(config, store, ignore, None, list[Deleted]().append, dry_run=False)
