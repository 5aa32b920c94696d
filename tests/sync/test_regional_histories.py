"""What happens to regions over the years: several nodes, chains and rings, older states put back, peers that go."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.store import shadow
from proxy.store.errors import CatalogError
from proxy.store.exchanged import MembershipChange
from proxy.store.shadow import read_names
from proxy.store.writer import Operation
from sync import following
from sync.taking import forget_others
from tests.store.contents import BUSYBOX, digest, parsed, put
from tests.sync.regional import Balanced, Link, Make, Region, fingerprint, points

MANY = 40
"""More than are compared without looking deeper."""


async def fill(region: Region, *, until: int = MANY, begin: int = 0) -> None:
    await asyncio.gather(*(region.saw(f"t{number}", f"image {number}") for number in range(begin, until)))


async def rows(region: Region, table: str) -> int:
    statement = f"SELECT count(*) FROM {table} WHERE peer > 0"
    return int(await region.catalog.read(lambda connection: connection.execute(statement).fetchone()[0]))


async def test_what_one_saw_reaches_the_end_of_a_chain_and_no_ring_goes_on_telling_it(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    ring = [Link(b, a), Link(c, b), Link(a, c)]
    await fill(a)
    for _ in range(3):
        for link in ring:
            await link.once()
    assert await points(c, "t7") == digest("image 7")
    rounds = [one.rounds() for one in (a, b, c)]
    await a.saw("t7", "another", now=2000.0)
    for link in ring:
        await link.once()
    heads = [one.catalog.published.number for one in (a, b, c)]
    assert await points(c, "t7") == digest("another")
    for link in ring * 2:
        await link.once()
    assert [one.rounds() for one in (a, b, c)] == rounds
    assert [one.catalog.published.number for one in (a, b, c)] == heads  # nobody has said anything since
    for link, giver in zip(ring, (a, b, c), strict=True):
        assert await link.shadow() == await fingerprint(giver)


async def test_three_nodes_in_turn_are_read_by_the_feed_while_there_is_news_on_all(make: Make) -> None:
    nodes = [await make(name) for name in ("a", "a2", "a3")]
    b = await make("b")
    for node in nodes[1:]:
        await node.catalog.rekey(nodes[0].catalog.mesh)
    fleet = [Link(taker, giver) for taker in nodes for giver in nodes if taker is not giver]

    async def exchange() -> None:
        for one in fleet:
            await one.once()

    await fill(nodes[0])
    await exchange()
    link = Link(b, Balanced(nodes), name="a")
    for _ in range(4):
        await link.once()
    rounds = sum(node.rounds() for node in nodes)
    for number in range(9):
        await nodes[number % 3].saw(f"t{number}", f"news {number}", now=2000.0 + number)
        await exchange()
        await link.once()
    assert sum(node.rounds() for node in nodes) == rounds
    assert [await points(b, f"t{number}") for number in range(9)] == [digest(f"news {number}") for number in range(9)]


async def test_a_difference_is_found_though_another_node_answers_each_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SETTLE_SECONDS", 0.01)
    nodes = [await make(name) for name in ("a", "a2", "a3")]
    b = await make("b")
    for node in nodes[1:]:
        await node.catalog.rekey(nodes[0].catalog.mesh)
        await Link(node, nodes[0]).once()
    await fill(nodes[0])
    for node in nodes[1:]:
        await Link(node, nodes[0]).once()
    link = Link(b, Balanced(nodes), name="a")
    for _ in range(4):
        await link.once()
    lost = "DELETE FROM root WHERE peer > 0 AND place IN (SELECT place FROM root WHERE peer > 0 LIMIT 5)"
    await b.catalog.write(lambda transaction: transaction.connection.execute(lost))
    async with asyncio.timeout(60):
        await link.once()
    assert await link.shadow() == await fingerprint(nodes[0])


@pytest.mark.parametrize("grown", [False, True], ids=["behind", "with another history"])
async def test_an_older_state_of_ours_that_is_put_back_hears_again_what_it_lost(
    make: Make, tmp_path: Path, grown: bool
) -> None:
    a, b = await make("a"), await make("b")
    await fill(a)
    link, back = Link(b, a), Link(a, b)
    await link.once()
    await back.once()
    with (
        closing(sqlite3.connect(tmp_path / "b.sqlite")) as source,
        closing(sqlite3.connect(tmp_path / "older.sqlite")) as older,
    ):
        source.backup(older)
    await fill(a, begin=MANY, until=MANY + 5)
    await b.saw("own", "ours", BUSYBOX)
    await link.once()
    await back.once()
    await b.catalog.aclose()
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"b.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "older.sqlite", tmp_path / "b.sqlite")
    b = await make("b")
    if grown:
        for number in range(10):
            await b.saw(f"later{number}", "other", BUSYBOX)
    link, back = Link(b, a), Link(a, b)
    for _ in range(2):
        await link.once()
        await back.once()
    assert await points(b, f"t{MANY + 4}") == digest(f"image {MANY + 4}")
    assert await points(b, "own", BUSYBOX) == digest("ours")
    assert await link.shadow() == await fingerprint(a)
    assert await back.shadow() == await fingerprint(b)


async def test_a_region_that_takes_over_a_filled_mirror_asks_for_what_differs_alone(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await fill(a)
    await Link(b, a).once()
    await a.saw("t3", "newer", now=2000.0)
    a.asked.clear()
    link = Link(b, a, name="renamed")
    await link.follower.once()
    assert [one.record.digest for one in await link.waiting()] == [digest("newer")]
    assert sum(question + answer for _, question, answer in a.asked) < 5000
    assert await link.shadow() == await fingerprint(a)


async def test_an_evicted_image_comes_back_by_no_feed_and_no_comparison(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await put(a.catalog, "image", parsed("image"))
    link = Link(b, a)
    await link.follower.once()
    (waiting,) = await link.waiting()
    assert isinstance(waiting.record, MembershipChange)
    await put(b.catalog, "image", parsed("image"))
    await link.work_off()
    await b.catalog.lose_blob(digest("image"), lambda: False)
    await a.catalog.write(lambda transaction: transaction.renew())
    await link.follower.once()
    assert await link.waiting() == []
    for name in ("renamed", "again"):
        link = Link(b, a, name=name)
        await link.follower.once()
        assert await link.waiting() == []


async def test_what_a_region_said_is_forgotten_once_it_is_no_peer_and_what_came_from_it_stays(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    await fill(a)
    await c.saw("own", "of c", BUSYBOX)
    link, other = Link(b, a), Link(b, c)
    await link.once()
    await other.once()
    await a.saw("waits", "new")
    await link.follower.once()
    await forget_others(b.catalog, {"c"})
    assert await b.catalog.read(read_names) == ["c"]
    assert [await rows(b, table) for table in ("root", "pending", "position")] == [1, 0, 1]
    assert await points(b, "t7") == digest("image 7")
    await link.once()  # and a peer again
    assert await points(b, "waits") == digest("new")
    assert await link.shadow() == await fingerprint(a)


async def test_both_sides_run_through_traffic_and_compare_no_more_than_at_the_beginning(make: Make) -> None:
    a, b = await make("a"), await make("b")
    there, back = Link(b, a), Link(a, b)
    await there.once()
    await back.once()
    rounds = a.rounds() + b.rounds()
    stop = asyncio.Event()

    async def work(link: Link) -> None:
        while not stop.is_set():
            await link.news.wait()
            link.news.clear()
            await link.work_off()

    tasks = [asyncio.create_task(run) for one in (there, back) for run in (one.follower.run(), work(one))]
    for number in range(40):
        await a.saw(f"a{number % 9}", f"image {number}", now=1000.0 + number)
        await b.saw(f"b{number % 7}", f"picture {number}", now=1000.0 + number)
    async with asyncio.timeout(60):
        while await points(b, "a3") != digest("image 39") or await points(a, "b4") != digest("picture 39"):
            await asyncio.wait([asyncio.ensure_future(one.news.wait()) for one in (there, back)], timeout=0.05)
    stop.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await there.once()
    await back.once()
    assert a.rounds() + b.rounds() == rounds
    assert await there.shadow() == await fingerprint(a)
    assert await back.shadow() == await fingerprint(b)


async def test_beginning_anew_and_forgetting_may_be_cut_short_anywhere(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "DROP_ROWS", 7)
    monkeypatch.setattr(shadow, "SEED_ROWS", 7)
    a, b = await make("a"), await make("b")
    await fill(a)
    link = Link(b, a)
    await link.follower.once()
    waiting = {one.record.digest for one in await link.waiting()}
    write, left = b.catalog.write, 0

    async def cut(operation: Operation[Any]) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise CatalogError("cut")
        return await write(operation)

    monkeypatch.setattr(b.catalog, "write", cut)
    for steps in range(1, 30, 3):
        await a.catalog.rekey(f"key number {steps}".encode())
        left = steps
        with suppress(CatalogError):
            await link.follower.once()
        left = 1000
        await link.follower.once()
        assert await link.shadow() == await fingerprint(a)
        assert {one.record.digest for one in await link.waiting()} == waiting
    for steps in range(8):
        left = steps
        with suppress(CatalogError):
            await forget_others(b.catalog, set())
        left = 1000
        await link.follower.once()
        assert await link.shadow() == await fingerprint(a)
        assert {one.record.digest for one in await link.waiting()} == waiting
