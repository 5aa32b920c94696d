"""Nodes take over one another's records: over real HTTP, with nodes that fail, come and go."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp
import pytest

from metrics.events import FeedFailed, FeedStanding, RecordsMerged
from proxy.cache.progress import Signal
from proxy.oci.errors import BadContent, Unavailable
from proxy.oci.names import Tag
from proxy.store import exchanged
from proxy.store.catalog import Catalog, Proof
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.errors import StoreClosed
from proxy.store.exchanged import Page
from proxy.store.feed import read_cursors, read_page
from sync import exchange as exchanging, feed
from sync.exchange import Exchange
from sync.records import Question, encode
from tests.store.contents import ALPINE, digest
from tests.sync.lab import LATEST, SOON, Lab, image, is_at, reaches, running, told, until


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Lab(tmp_path, stack, session)


async def test_what_moves_on_one_node_is_known_on_the_other_at_once(lab: Lab) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    exchange = lab.exchange(b, a)
    async with running(exchange):
        await reaches(b, "one")
        await until(b.catalog, lambda: any(question.wait for question in a.asked))
        asked = len(a.asked)
        began = asyncio.get_running_loop().time()
        await a.catalog.put_tag(ALPINE, LATEST, image("two"), 20.0)
        await reaches(b, "two")
        assert asyncio.get_running_loop().time() - began < 10
        assert len(a.asked) <= asked + 2
        assert exchange.behind == {a.url: 0.0}
    assert RecordsMerged(1, 0, 0, 0) in lab.events
    assert FeedStanding(1, 1) in lab.events


async def test_a_worker_process_answers_with_what_another_process_of_its_node_wrote(lab: Lab, tmp_path: Path) -> None:
    with (tmp_path / "slots").open("w+b") as slots:
        coherence = Coherence.create(slots.fileno())
        owner = await Catalog.open(tmp_path / "a.sqlite", Disk(), coherence)
        worker = await Catalog.attach(tmp_path / "a.sqlite", Coherence(slots.fileno()))
        try:
            number = worker.published.number
            waiting = asyncio.create_task(worker.published.wait(number, SOON))
            await owner.put_tag(ALPINE, LATEST, image("one"), 10.0)
            began = asyncio.get_running_loop().time()
            assert await waiting
            assert asyncio.get_running_loop().time() - began < 10
        finally:
            await worker.aclose()
            await owner.aclose()


async def test_whoever_took_all_from_one_node_asks_the_others_for_the_rest_alone(lab: Lab) -> None:
    a, b, c = await lab.node("a"), await lab.node("b"), await lab.node("c")
    for number in range(20):
        await a.catalog.prove(ALPINE, digest(f"blob {number}"), Proof.FETCHED)
    await lab.exchange(b, a).catch_up(a.url)
    async with running(lab.exchange(c, b, a)):
        await until(c.catalog, lambda: any(question.wait for question in a.asked))
    assert await c.catalog.has_membership(ALPINE, digest("blob 19"))
    mine = [question for question in a.asked if question.epoch == a.catalog.epoch]
    first_of_c = mine[[question.seq for question in mine].index(0) + 1]
    assert first_of_c.seq == 20  # nothing of a's was read again


async def test_pages_follow_one_another_and_an_exchange_cut_between_them_goes_on_there(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_RECORDS", 3)
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.pin(ALPINE, LATEST)
    await lab.exchange(b, a).catch_up(a.url)
    for number in range(10):
        await a.catalog.prove(ALPINE, digest(f"blob {number}"), Proof.FETCHED)
    a.asked.clear()
    with pytest.raises(Unavailable):
        await lab.breaking(b, a, at=4).catch_up(a.url)
    assert [cursor.seq for cursor in await b.catalog.read(read_cursors)] == [10]
    await lab.exchange(b, a).catch_up(a.url)
    assert [question.seq for question in a.asked] == [1, 4, 7, 10]
    assert all([await b.catalog.has_membership(ALPINE, digest(f"blob {number}")) for number in range(10)])


async def test_a_first_copy_that_is_cut_goes_on_there_and_counts_once_it_is_whole(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_COPIED", 3)
    a, b = await lab.node("a"), await lab.node("b")
    for number in range(10):
        await a.catalog.prove(ALPINE, digest(f"blob {number}"), Proof.FETCHED)
        await a.catalog.put_tag(ALPINE, Tag(f"v{number}"), image(f"blob {number}"), 10.0)
        await a.catalog.pin(ALPINE, Tag(f"v{number}"))
    cut = lab.breaking(b, a, at=6)
    with pytest.raises(Unavailable):
        await cut.catch_up(a.url)
    assert await b.catalog.read(read_cursors) == []
    await a.catalog.put_tag(ALPINE, Tag("v0"), image("changed meanwhile"), 20.0)
    await cut.catch_up(a.url)
    places = [question.copy for question in a.asked if question.copy is not None]
    assert len(places) == len(set(places)) == 12
    assert [cursor.seq for cursor in await b.catalog.read(read_cursors)] == [31]
    assert await told(b) == await told(a)


async def test_who_died_in_a_first_copy_begins_it_again_and_stamps_nothing_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_COPIED", 3)
    a, b = await lab.node("a"), await lab.node("b")
    for number in range(10):
        await a.catalog.prove(ALPINE, digest(f"blob {number}"), Proof.FETCHED)
    with pytest.raises(Unavailable):
        await lab.breaking(b, a, at=4).catch_up(a.url)
    await lab.exchange(b, a).catch_up(a.url)
    assert await told(b) == await told(a)
    assert (await b.catalog.read(lambda connection: read_page(connection, b.catalog.epoch, 0, 100))).head == 10


async def test_a_refusal_in_a_first_copy_is_what_is_read_again_and_not_all(lab: Lab) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    for number in range(5):
        await a.catalog.put_tag(ALPINE, Tag(f"v{number}"), image("one"), time.time())
    await a.catalog.put_tag(ALPINE, LATEST, image("one"), time.time() + 86400)
    await lab.exchange(b, a).catch_up(a.url)
    assert [cursor.seq for cursor in await b.catalog.read(read_cursors)] == [5]


async def test_a_node_that_never_comes_to_an_end_fails(lab: Lab) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    epochs = (f"epoch {number}" for number in range(1000))

    async def anew(url: str, target: str, seconds: float) -> bytes:
        return encode(Page(next(epochs), 9, 0, restart=True))

    async def more(url: str, target: str, seconds: float) -> bytes:
        question = Question.parse(target.partition("?")[2])
        if question.copy is not None or not question.epoch:
            return encode(Page("e", 9, 0, restart=not question.epoch, copy="m:1:again" if question.epoch else None))
        return encode(Page("e", 9, question.seq, more=True))

    for fetch in (anew, more):
        with pytest.raises(BadContent, match="without coming to an end"):
            await asyncio.wait_for(Exchange(b.catalog, lambda: [a.url], Signal(), fetch).catch_up(a.url), SOON)


async def test_a_node_that_drains_is_not_asked_without_a_pause(lab: Lab) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    async with running(lab.exchange(b, a)):
        await until(b.catalog, lambda: any(question.wait for question in a.asked))
        a.asked.clear()
        a.changes.end()
        await asyncio.sleep(0.3)
        assert len(a.asked) <= 2


async def test_an_older_state_of_a_data_folder_that_was_put_back_is_noticed_and_read_anew(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.put_tag(ALPINE, Tag("kept"), image("one"), 10.0)
    with (
        closing(sqlite3.connect(tmp_path / "a.sqlite")) as now,
        closing(sqlite3.connect(tmp_path / "older.sqlite")) as copy,
    ):
        now.backup(copy)
    await a.catalog.put_tag(ALPINE, LATEST, image("two"), time.time())
    await a.catalog.put_tag(ALPINE, Tag("more"), image("two"), time.time())
    await lab.exchange(b, a).catch_up(a.url)
    older = await lab.node("older")
    a.changes._catalog = older.catalog  # as after a restart on a snapshot of the volume
    assert older.catalog.epoch == a.catalog.epoch
    await older.catalog.put_tag(ALPINE, Tag("new"), image("new"), time.time())
    await lab.exchange(older, b).catch_up(b.url)
    assert await is_at(older, "two")
    assert "an older state of the data folder was put back" in caplog.text
    await lab.exchange(b, a).catch_up(a.url)
    assert await b.catalog.tag(ALPINE, Tag("new")) is not None


async def test_places_of_catalogs_that_no_node_has_are_not_told_on(lab: Lab) -> None:
    a, b, c = await lab.node("a"), await lab.node("b"), await lab.node("c")
    await lab.exchange(b, c).catch_up(c.url)
    taker = lab.exchange(a, b)
    await taker.catch_up(b.url)
    assert {cursor.node for cursor in await a.catalog.read(read_cursors)} == {b.url}


async def test_a_catalog_that_was_replaced_is_read_anew_and_reads_the_others_itself(lab: Lab, tmp_path: Path) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    await lab.exchange(b, a).catch_up(a.url)
    new = await lab.node("a-restored")
    await new.catalog.put_tag(ALPINE, Tag("other"), image("other"), 11.0)
    a.changes._catalog = new.catalog  # the node at a's address has another catalog now
    await lab.exchange(b, a).catch_up(a.url)
    assert await b.catalog.tag(ALPINE, Tag("other")) is not None
    assert {cursor.epoch for cursor in await b.catalog.read(read_cursors)} == {new.catalog.epoch}
    await lab.exchange(new, b).catch_up(b.url)
    assert await is_at(new, "one")


async def test_a_node_that_fails_is_asked_again_and_the_others_meanwhile(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "PAUSE_SECONDS", (0.01, 0.02))
    a, b, c = await lab.node("a"), await lab.node("b"), await lab.node("c")
    lab.cut.add(a.url)
    await a.catalog.put_tag(ALPINE, Tag("of-a"), image("a"), 10.0)
    await b.catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    exchange = lab.exchange(c, a, b)
    async with running(exchange):
        await reaches(c, "one")
        assert await c.catalog.tag(ALPINE, Tag("of-a")) is None
        async with asyncio.timeout(SOON):
            await lab.failed.wait()
        assert exchange.standings[a.url].error is not None
        assert exchange.behind[a.url] > 0
        lab.cut.clear()
        async with asyncio.timeout(SOON):
            while await c.catalog.tag(ALPINE, Tag("of-a")) is None:
                await c.catalog.published.wait(c.catalog.published.number, 0.05)
    assert FeedFailed("unreachable") in lab.events


async def test_nodes_come_and_go(lab: Lab) -> None:
    a, b, c = await lab.node("a"), await lab.node("b"), await lab.node("c")
    await b.catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    urls, changed = [a.url], Signal()
    exchange = Exchange(c.catalog, lambda: urls, changed, lab.fetch)
    async with running(exchange):
        await until(c.catalog, lambda: a.asked)
        urls[:] = [b.url]
        changed.wake()
        await reaches(c, "one")
        assert set(exchange.standings) == {b.url}


async def test_a_copied_data_folder_is_told_and_not_taken_over(lab: Lab) -> None:
    a = await lab.node("a")
    with pytest.raises(exchanging.SameCatalog, match="was the data folder copied"):
        await lab.exchange(a, a).catch_up(a.url)


async def test_an_answer_about_another_position_is_not_believed(lab: Lab) -> None:
    a, b = await lab.node("a"), await lab.node("b")

    async def lies(url: str, target: str, seconds: float) -> bytes:
        question = Question.parse(target.partition("?")[2])
        return encode(Page("e", 9, 0, restart=True) if question.epoch != "e" else Page("f", 9, 9, copy=""))

    with pytest.raises(BadContent, match="about another catalog"):
        await Exchange(b.catalog, lambda: [a.url], Signal(), lies).catch_up(a.url)


async def test_a_server_that_drains_lets_nobody_wait(lab: Lab) -> None:
    a = await lab.node("a")
    waiting = asyncio.create_task(lab.fetch(a.url, Question(a.catalog.epoch, 0, 30.0).target, 35.0))
    async with asyncio.timeout(SOON):
        await a.met.wait()
        a.changes.end()
        assert len(await waiting) <= 300


async def test_what_was_refused_for_its_clock_is_taken_once_the_clocks_are_right(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.put_tag(ALPINE, Tag("early"), image("early"), time.time())
    await a.catalog.put_tag(ALPINE, LATEST, image("one"), time.time() + 86400)
    await a.catalog.pin(ALPINE, LATEST)
    exchange = lab.exchange(b, a)
    await exchange.catch_up(a.url)
    assert await b.catalog.tag(ALPINE, Tag("early")) is not None
    assert await b.catalog.tag(ALPINE, LATEST) is None
    assert exchange.standings[a.url].refused == 2  # the pin's version came after the tag's
    assert sum(event.refused for event in lab.events if isinstance(event, RecordsMerged)) == 2
    assert "Set the clocks of both right" in caplog.text
    monkeypatch.setattr(exchanged, "AHEAD_SECONDS", 2 * 86400.0)
    await exchange.catch_up(a.url)
    assert await is_at(b, "one")
    assert exchange.standings[a.url].refused == 0


async def test_what_was_refused_is_read_again_after_a_while(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanging, "AGAIN_SECONDS", 0.0)
    a, b = await lab.node("a"), await lab.node("b")
    await a.catalog.put_tag(ALPINE, LATEST, image("one"), time.time() + 86400)
    async with running(lab.exchange(b, a)):
        await until(b.catalog, lambda: len(a.asked) > 2)
        monkeypatch.setattr(exchanged, "AHEAD_SECONDS", 2 * 86400.0)
        await reaches(b, "one")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (exchanging.SameCatalog("same"), "same-catalog"),
        (BadContent("unreadable"), "unreadable"),
        (StoreClosed("closed"), "store"),
        (Unavailable("gone"), "unreachable"),
        (TimeoutError(), "unreachable"),
        (ValueError(), "other"),
    ],
)
def test_failures_are_counted_by_a_few_reasons(error: Exception, reason: str) -> None:
    assert exchanging.reason_of(error) == reason
