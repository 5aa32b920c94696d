"""One region follows what another says: by its feed, and by ranges where the two do not know how they differ."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Set
from pathlib import Path

import pytest

from proxy.oci.errors import BadContent, Unavailable
from proxy.oci.names import Repository
from proxy.regions.scope import Scope
from proxy.store.ranges import Sum, read_fingerprint
from sync.exchange import SameCatalog
from sync.regional_records import RANGES
from tests.store.contents import ALPINE, BUSYBOX, digest
from tests.sync.regional import Balanced, Link, Make, fingerprint, points


async def test_a_tag_that_another_region_saw_waits_and_then_stands(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a)
    await link.follower.once()
    assert link.news.is_set()
    assert await points(b, "latest") is None
    await link.work_off()
    assert await points(b, "latest") == digest("one")
    assert await link.shadow() == await fingerprint(a)


async def test_what_changes_later_comes_by_the_feed_and_never_by_ranges(make: Make) -> None:
    a, b = await make("a"), await make("b")
    there, back = Link(b, a), Link(a, b)
    await there.once()
    await back.once()
    rounds = a.rounds() + b.rounds()
    for number in range(30):
        await a.saw(f"a{number % 7}", f"image {number}", now=1000.0 + number)
        await b.saw(f"b{number % 5}", f"picture {number}", now=1000.0 + number)
        await there.once()
        await back.once()
    await there.once()
    assert a.rounds() + b.rounds() == rounds
    assert await fingerprint(a) != await fingerprint(b)  # each has a key of its own
    assert await there.shadow() == await fingerprint(a)
    assert await back.shadow() == await fingerprint(b)
    assert await points(a, "b4") == await points(b, "b4") is not None


async def test_a_poll_without_news_costs_three_hundred_bytes(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a)
    await link.once()
    a.asked.clear()
    await link.follower.once()
    ((_, _, answered),) = a.asked
    assert answered <= 300


async def test_who_waits_hears_of_a_change_at_once(make: Make) -> None:
    a, b = await make("a"), await make("b")
    link = Link(b, a)
    await link.once()
    a.met.clear()
    task = asyncio.create_task(link.follower.run())
    async with asyncio.timeout(30):
        await a.met.wait()
        await a.saw("latest", "one")
        await link.news.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [one.record.digest for one in await link.waiting()] == [digest("one")]


async def test_who_has_read_all_there_is_knows_so_before_there_is_news(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a)
    running = asyncio.create_task(link.follower.run())
    async with asyncio.timeout(30):
        await a.waited_for.wait()
    assert link.follower.standing.read_at is not None
    assert link.follower.standing.records > 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_asks_for_all_there_is_now_does_not_wait_for_news(make: Make) -> None:
    a, b = await make("a"), await make("b")
    link = Link(b, a)
    await link.once()
    running = asyncio.create_task(link.follower.run())
    async with asyncio.timeout(30):
        await a.waited_for.wait()
    asked = len(a.asked)
    await link.follower.once()
    assert len(a.asked) == asked + 1  # the question that waits was not answered, and is given up
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_position_that_an_older_backup_does_not_know_is_reconciled(make: Make, tmp_path: Path) -> None:
    a, b = await make("a"), await make("b")
    for number in range(40):
        await a.saw(f"t{number}", f"image {number}")
    link = Link(b, a)
    await link.once()
    await a.catalog.write(lambda transaction: transaction.connection.execute("DELETE FROM tag WHERE name = 't7'"))
    await a.catalog.write(lambda transaction: transaction.connection.execute("DELETE FROM root WHERE key = 't:t7'"))
    await a.catalog.write(lambda transaction: transaction.renew())
    before = link.reconciled
    await link.once()
    assert link.reconciled == before + 1
    assert await link.shadow() == await fingerprint(a)
    assert await points(b, "t7") == digest("image 7")  # what the peer lost is deleted nowhere


@pytest.mark.parametrize(("scope", "grant"), [("docker.io/library/alpine", "*"), ("*", "docker.io/library/alpine")])
async def test_only_what_is_both_asked_for_and_granted_is_told(make: Make, scope: str, grant: str) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    await a.saw("latest", "two", BUSYBOX)
    a.grant = Scope.of([grant])
    link = Link(b, a, Scope.of([scope]))
    await link.once()
    rounds = a.rounds()
    await a.saw("edge", "three", BUSYBOX)
    await a.saw("edge", "three", ALPINE)
    await link.once()
    assert (await points(b, "edge"), await points(b, "edge", BUSYBOX)) == (digest("three"), None)
    assert (await link.shadow()).records == 2
    assert a.rounds() == rounds


async def test_a_grant_that_shrinks_takes_records_out_of_the_shadow_and_deletes_nothing(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    await a.saw("latest", "two", BUSYBOX)
    link = Link(b, a)
    await link.once()
    await a.saw("edge", "three", BUSYBOX)
    await link.follower.once()
    a.grant = Scope.of([str(ALPINE)])
    await link.once()
    assert (await link.shadow()).records == 1
    assert await link.waiting() == []
    assert await points(b, "latest", BUSYBOX) == digest("two")
    assert await points(b, "edge", BUSYBOX) is None


async def test_two_nodes_behind_one_name_are_read_by_a_position_each(make: Make) -> None:
    a, twin, b = await make("a"), await make("twin"), await make("b")
    await twin.catalog.rekey(a.catalog.mesh)
    fleet = Link(twin, a)
    await a.saw("latest", "one")
    await fleet.once()
    link = Link(b, Balanced([a, twin]))
    for _ in range(3):
        await link.once()
    rounds = a.rounds() + twin.rounds()
    for number in range(6):
        await a.saw("latest", f"image {number}", now=2000.0 + number)
        await fleet.once()
        await link.once()
    assert await points(b, "latest") == digest("image 5")
    assert a.rounds() + twin.rounds() == rounds


async def test_what_is_cut_short_goes_on(make: Make) -> None:
    a, b = await make("a"), await make("b")
    for number in range(300):
        await a.saw(f"t{number}", f"image {number}")
    fetched = a.fetch

    async def breaking(target: str, seconds: float, body: bytes | None) -> bytes:
        if len(a.asked) == 2:
            a.asked.append(("cut", 0, 0))
            raise Unavailable("cut")
        return await fetched(target, seconds, body)

    a.fetch = breaking  # type: ignore[method-assign]
    link = Link(b, a)
    with pytest.raises(Unavailable):
        await link.once()
    await link.once()
    assert await link.shadow() == await fingerprint(a)
    assert link.follower.standing.error is None
    assert await points(b, "t299") == digest("image 299")


async def test_a_version_ahead_of_the_clock_waits_and_is_not_learned(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one", now=9e9)
    link = Link(b, a)
    await link.once()
    (waiting,) = await link.waiting()
    assert "ahead" in str(waiting.error)
    assert 8.9e9 < waiting.next_at < 9e9
    assert await link.shadow() == await fingerprint(a)


async def test_a_region_that_is_itself_is_told_so(make: Make) -> None:
    a = await make("a")
    link = Link(a, a, name="b")
    with pytest.raises(SameCatalog, match="URL"):
        await link.once()


async def test_records_nobody_asked_for_are_refused(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a)
    await link.once()

    async def everything(target: str, seconds: float, body: bytes | None) -> bytes:
        return await a.fetch(target.partition("&scope")[0], seconds, body)

    narrow = Link(b, a, Scope.of([str(BUSYBOX)]))
    narrow.follower._fetch = everything
    await a.saw("latest", "two")
    with pytest.raises(BadContent, match="not asked for"):
        await narrow.once()
    assert await points(b, "latest") == digest("one")


async def test_another_key_of_the_peer_drops_the_shadow_and_asks_again_for_what_differs_alone(make: Make) -> None:
    a, b = await make("a"), await make("b")
    for number in range(50):
        await a.saw(f"t{number}", f"image {number}", Repository("docker.io", f"library/r{number % 5}"))
    link = Link(b, a)
    await link.once()
    await a.catalog.rekey(b"another mesh key")
    a.asked.clear()
    await a.saw("new", "x")
    await link.once()
    assert await link.shadow() == await fingerprint(a)
    assert await points(b, "new") == digest("x")
    assert sum(size for _, _, size in a.asked) < 5000


async def test_news_that_who_waits_may_not_hear_of_sums_up_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a, Scope.of([str(ALPINE)]))
    await link.once()
    running = asyncio.create_task(link.follower.run())
    async with asyncio.timeout(30):
        await a.waited_for.wait()
        summed = 0

        def counted(connection: sqlite3.Connection, peer: int, ids: Set[int] | None) -> Sum:
            nonlocal summed
            summed += 1
            return read_fingerprint(connection, peer, ids)

        monkeypatch.setattr("sync.regional_feed.read_fingerprint", counted)
        for number in range(5):
            await a.saw(f"t{number}", "another's", BUSYBOX)
            await a.catalog.read(lambda connection: None)
        link.news.clear()
        await a.saw("latest", "two")
        await link.news.wait()
    assert summed == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_log_tells_that_a_region_answers_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    a, b = await make("a"), await make("b")
    link = Link(b, a)
    a.cut = True
    with pytest.raises(Unavailable):
        await link.follower.once()
    a.cut = False
    with caplog.at_level("INFO", "sync.following"):
        await link.once()
        await link.once()
    assert [record.getMessage() for record in caplog.records] == [
        "the records of region a cannot be taken over at the moment: the region does not answer",
        "the records of region a are taken over again",
    ]


async def test_comparisons_that_the_link_cuts_off_count_for_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is cut in the midst of one, nobody takes the peer for one that tells what it has not."""
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    answer, cuts = a.fetch, 10

    async def cut_at_ranges(target: str, seconds: float, body: bytes | None) -> bytes:
        nonlocal cuts
        if target.startswith(RANGES) and cuts:
            cuts -= 1
            raise Unavailable("the link is cut")
        return await answer(target, seconds, body)

    monkeypatch.setattr(a, "fetch", cut_at_ranges)
    link = Link(b, a)
    while cuts:
        with pytest.raises(Unavailable, match="the link is cut"):
            await link.follower.once()
    await link.once()
    assert await points(b, "latest") == digest("one")
