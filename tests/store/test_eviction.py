"""What goes when room is needed, and what stays. What a crash in between leaves is `test_trash`'s."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from hypothesis import given, strategies as st

from metrics.events import ClosureEvicted, Event, ignore
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.oci.names import Tag
from proxy.store import closure, eviction, space, sweep
from proxy.store.catalog import Catalog, Proof
from proxy.store.errors import NoRoom, TooLarge
from proxy.store.evict import Volume, limits, that_fit
from proxy.store.eviction import Order
from proxy.store.schema import connect
from proxy.store.store import Store
from proxy.store.sweep import Sweeper, free, sweeping
from proxy.store.writer import Transaction
from tests.store.contents import ALPINE, TYPES, child, digest, parsed, put
from tests.store.evicting import blob, evict, image, present, used_at

SIZES = st.integers(0, 1 << 50)


@given(st.none() | SIZES, SIZES, SIZES, SIZES, SIZES)
def test_a_twentieth_of_the_volume_stays_free(
    quota: int | None, total: int, free: int, spools: int, stored: int
) -> None:
    marks = limits(quota, Volume(total, free, spools), stored)
    assert 0 <= marks.low <= marks.high
    assert marks.high <= (total * 4 // 5 if quota is None else quota)
    if marks.high > stored + spools:
        assert free - (marks.high - stored - spools) >= total // 20


def test_those_who_wait_are_served_in_their_order() -> None:
    assert that_fit([10, 20, 5], used=70, high=100) == 2
    assert that_fit([40, 5], used=70, high=100) == 0


async def test_the_image_used_longest_ago_goes_whole_and_shared_layers_stay(store: Store) -> None:
    await image(store, "old", "base", "a")
    await image(store, "new", "base", "b")
    await used_at(store, {"old": 10, "base": 5, "a": 7, "new": 20, "b": 6})
    (gone,) = await evict(store, Order("quota", target=2500))
    assert (gone.root, gone.blobs, gone.bytes, gone.last_use) == (digest("old"), 2, 1003, 10)
    assert gone.repository == "docker.io/library/alpine"
    assert await present(store, "old", "a", "base", "new", "b") == {"base", "new", "b"}
    new = await store.catalog.blob(digest("new"))
    old = await store.catalog.blob(digest("old"))
    assert new is not None
    assert new.servable
    assert old is not None
    assert not old.servable


async def test_an_index_is_as_young_as_the_platform_that_was_pulled_last(store: Store) -> None:
    await image(store, "amd64", "a")
    await blob(store, "index", 5, parsed("index", child("amd64", "manifest", size=5)))
    await image(store, "other", "b")
    await used_at(store, {"index": 10, "amd64": 30, "a": 30, "other": 20, "b": 20})
    assert [one.root for one in await evict(store, Order("quota", target=1200))] == [digest("other")]
    assert await present(store, "index", "amd64", "a") == {"index", "amd64", "a"}
    assert [one.root for one in await evict(store, Order("quota"))] == [digest("index")]
    assert await present(store, "index", "amd64", "a") == set()


async def test_what_is_pinned_stays_with_all_that_it_needs(store: Store) -> None:
    await image(store, "one", "a")
    await image(store, "two", "b")
    await image(store, "three", "c")
    two = Descriptor(TYPES["image"], digest("two"), 3)
    await store.catalog.put_tag(ALPINE, Tag("v2"), two, 1.0)
    await store.catalog.pin(ALPINE, digest("one"))
    await store.catalog.pin(ALPINE, Tag("v2"))
    assert [one.root for one in await evict(store, Order("quota"))] == [digest("three")]
    assert await present(store, "one", "a", "two", "b", "three", "c") == {"one", "a", "two", "b"}
    await store.catalog.unpin(ALPINE, digest("one"))
    await evict(store, Order("quota"))
    assert await present(store, "one", "a", "two", "b") == {"two", "b"}


async def test_a_signature_stays_while_its_subject_does_and_goes_with_it(store: Store) -> None:
    await image(store, "signature", "s", subject="signed")
    await image(store, "signed", "a")
    await image(store, "other", "b")
    await used_at(store, {"signature": 1, "s": 1, "signed": 30, "a": 30, "other": 20, "b": 20})
    assert [one.root for one in await evict(store, Order("quota", target=2500))] == [digest("other")]
    assert await present(store, "signature", "s") == {"signature", "s"}
    assert [one.blobs for one in await evict(store, Order("quota"))] == [4]
    assert await present(store, "signature", "s", "signed", "a") == set()


async def test_an_image_of_which_a_part_is_being_fetched_is_spared(store: Store) -> None:
    await blob(store, "image", 5, parsed("image", child("a"), child("late", size=7)))
    await blob(store, "a", 1)
    spool = await store.begin(digest("late"), 7, ALPINE)
    assert await evict(store, Order("quota")) == []
    assert [one.root for one in await evict(store, Order("quota", spare=False))] == [digest("image")]
    await store.abandon(spool)


async def test_what_was_used_while_the_clock_was_ahead_takes_its_turn(store: Store) -> None:
    with time_machine.travel(datetime.now() + timedelta(days=3650)):
        await image(store, "ahead", "a", size=1000)
    await image(store, "used", "u", size=1000)
    await store.evict(Order("quota", 5000))
    store.catalog._touches.used(digest("used"), time.time() + 1)
    await store.evict(Order("quota", 1500))
    assert await present(store, "ahead", "used") == {"used"}


async def test_what_one_process_evicts_all_others_know_to_be_gone(store: Store, root: Path) -> None:
    other = await Store.attach(root)
    await image(store, "one", "a")
    assert await present(other, "one", "a") == {"one", "a"}
    moves = other.catalog.moves
    await store.evict(Order("quota"))
    assert await present(other, "one", "a") == set()
    assert other.catalog.moves != moves
    await other.close()


async def test_orphans_go_by_their_age_and_manifests_are_none(store: Store) -> None:
    await blob(store, "stray", 10)
    await blob(store, "fresh", 10)
    await image(store, "image", "a")
    await used_at(store, {"stray": 10, "fresh": 500, "image": 5, "a": 5})
    assert [one.root for one in await evict(store, Order("orphan", until=100))] == [digest("stray")]
    assert await present(store, "fresh", "image", "a") == {"fresh", "image", "a"}


async def test_a_use_that_waits_to_be_written_counts(store: Store) -> None:
    await image(store, "one", "a")
    await image(store, "two", "b")
    await used_at(store, {"one": 10, "two": 20, "a": 1, "b": 1})
    store.catalog.touch(digest("one"))
    assert [one.root for one in await evict(store, Order("quota", target=1100))] == [digest("two")]


async def test_a_large_closure_goes_over_several_steps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [f"layer {number}" for number in range(12)]
    await image(store, "large", *layers, size=10)
    monkeypatch.setattr(eviction, "STEP_BLOBS", 5)
    step = await store.evict(Order("quota"))
    assert (len(step.moved), step.evicted) == (5, [])
    assert step.next is not None
    (gone,) = await evict(store, step.next)
    assert (gone.blobs, gone.bytes) == (13, 125)
    assert await present(store, "large", *layers) == set()


async def test_what_a_command_removed_goes_unless_something_needs_it(store: Store) -> None:
    await image(store, "one", "a", "shared")
    await image(store, "two", "shared")
    events: list[Event] = []
    (gone,) = await free(store, [digest("one"), digest("shared")], events.append)
    assert (gone.reason, gone.blobs) == ("rm", 2)
    assert events == [ClosureEvicted("rm", 2, 1003)]
    assert await present(store, "one", "a", "two", "shared") == {"two", "shared"}


async def test_a_reader_of_an_evicted_file_reads_on(store: Store) -> None:
    await blob(store, "read", 1000)
    stored = await store.open_blob(digest("read"))
    assert stored is not None
    await evict(store, Order("quota"))
    assert os.pread(stored.fd, 2000, 0) == b"x" * 1000
    stored.close()
    assert await store.open_blob(digest("read")) is None


async def test_room_is_made_for_a_fill_and_none_beyond_what_is_pinned(store: Store) -> None:
    await image(store, "pinned", "p", size=5000)
    await store.catalog.pin(ALPINE, digest("pinned"))
    await image(store, "other", "o", size=4000)
    async with sweeping(store, 10_000, ignore):
        spool = await store.begin(digest("wanted"), 4500, ALPINE)
        assert await present(store, "pinned", "p", "other", "o") == {"pinned", "p"}
        assert (await store.catalog.usage()).used <= 10_000
        await store.abandon(spool)
        with pytest.raises(NoRoom, match="raise the quota"):
            await store.begin(digest("wanted"), 6000, ALPINE)
        with pytest.raises(TooLarge):
            await store.begin(digest("wanted"), 10_001, ALPINE)
    assert await present(store, "pinned", "p") == {"pinned", "p"}


async def test_an_attempt_of_unknown_size_is_held_to_the_quota(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "PATIENCE_SECONDS", 0.1)
    async with sweeping(store, 80_000, ignore):
        spool = await store.begin(digest("unsized"), None, ALPINE)
        await store.extend(spool, 60_000)
        with pytest.raises((NoRoom, TooLarge)):
            await store.extend(spool, 90_000)
        await store.abandon(spool)
        assert (await store.catalog.usage()).used == 0


async def test_passing_the_high_mark_sweeps_to_the_low_one(store: Store) -> None:
    for number in range(10):
        await image(store, f"image {number}", f"layer {number}", size=1000)
    swept = asyncio.Event()

    def emit(event: Event) -> None:
        if isinstance(event, ClosureEvicted) and event.reason == "quota":
            swept.set()

    async with sweeping(store, 9_500, emit), asyncio.timeout(30):
        await swept.wait()
    assert (await store.catalog.usage()).used <= 9_500 * 9 // 10
    assert await present(store, "image 9", "layer 9") == {"image 9", "layer 9"}
    assert await present(store, "image 0", "layer 0") == set()


async def test_manifests_which_are_never_refused_do_not_pass_the_mark_unnoticed(store: Store) -> None:
    async with sweeping(store, 10_000, ignore) as sweeper, asyncio.timeout(30):
        for number in range(60):
            body = b"{}" + b" " * 500 + str(number).encode()
            await store.put_manifest(
                body,
                parsed=parsed("image"),
                repository=ALPINE,
                proof=Proof.FETCHED,
                public=True,
                digest=Digest.of(body),
            )
            assert (await store.catalog.usage()).used <= 20_000
        assert sweeper is not None


async def test_collecting_goes_down_to_the_low_mark(store: Store) -> None:
    for number in range(4):
        await image(store, f"image {number}", f"layer {number}", size=1000)
    sweeper = Sweeper(store, 3000, ignore)
    gone = await sweeper.collect()
    assert [one.reason for one in gone] == ["gc", "gc"]
    assert (await store.catalog.usage()).used <= 2700


async def test_the_sweeper_outlives_what_nobody_foresaw(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, volume = asyncio.Event(), store.volume

    async def broken() -> Volume:
        failed.set()
        raise ZeroDivisionError

    async with sweeping(store, 3000, ignore) as sweeper, asyncio.timeout(30):
        monkeypatch.setattr(store, "volume", broken)
        sweeper.nudge()
        await failed.wait()
        monkeypatch.setattr(store, "volume", volume)
        for number in range(4):
            await blob(store, f"layer {number}", 1000)


async def test_many_digests_are_freed_some_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "AT_ONCE", 2)
    digests = [await blob(store, f"layer {number}", 10) for number in range(5)]
    orders: list[Order] = []
    evict = store.evict

    async def noted(order: Order) -> eviction.Step:
        orders.append(order)
        return await evict(order)

    monkeypatch.setattr(store, "evict", noted)
    assert len(await free(store, digests, ignore)) == 5
    assert max(len(order.chosen or ()) for order in orders) == 2


RECOUNT = """
    SELECT digest FROM blob WHERE holders <>
        (SELECT count(*) FROM edge JOIN blob AS p ON p.digest = edge.parent
            WHERE edge.child = blob.digest AND p.present)
        + (SELECT count(*) FROM referrer JOIN blob AS s ON s.digest = referrer.subject
            WHERE referrer.digest = blob.digest AND s.present)
"""


@pytest.mark.parametrize("seed", range(5))
async def test_holders_are_counted_right_whatever_happens(catalog: Catalog, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"b{number}" for number in range(12)]
    shapes: dict[str, ParsedManifest | None] = {}
    for at, name in enumerate(names):
        below = chance.sample(names[:at], min(at, 3))
        subject = chance.choice(names[:at]) if at and chance.random() < 0.4 else None
        shapes[name] = parsed("image", *map(child, below), subject=subject) if chance.random() < 0.6 else None
    for _ in range(60):
        name = chance.choice(names)
        if chance.random() < 0.6:
            await put(catalog, name, shapes[name])
        else:
            await catalog.lose_blob(digest(name), lambda: False)
        assert await catalog.read(lambda connection: connection.execute(RECOUNT).fetchall()) == []


@pytest.mark.parametrize("statement", eviction.STATEMENTS)
def test_choosing_and_checking_search_by_index(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    values: object = {"digest": "x"} if ":digest" in statement else ["x"] * statement.count("?")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]  # type: ignore[arg-type]
    connection.close()
    assert [step for step in plan if step.startswith("SCAN ") and "CONSTANT" not in step] == []
    assert [step for step in plan if "TEMP B-TREE" in step] == []
    if statement is eviction.ROOT:
        assert any("blob_idle" in step for step in plan)


def effort(parents: int, path: Path) -> tuple[int, int]:
    """Return SQLite's steps, in hundreds, for evicting an image, and for storing its base layer again.

    The base layer is also named by `parents` others, all but one of which are evicted.
    """
    connection = connect(path)
    transaction = Transaction(connection)

    def store(name: str, manifest: ParsedManifest | None = None) -> None:
        closure.record_blob(
            transaction, digest(name), size=1, parsed=manifest, public=True, now=1.0, changed=lambda _: None
        )

    def evict(name: str) -> None:
        eviction.step(transaction, Order("rm", target=-1, chosen=(digest(name),)), lambda *_: None, lambda _: None)

    def counted(work: Callable[[], None]) -> int:
        steps = 0

        def tick() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(tick, 100)
        work()
        connection.set_progress_handler(None, 0)
        return steps

    store("base")
    for number in range(parents):
        store(f"other{number}", parsed("image", child("base", size=1)))
    store("one", parsed("image", child("base", size=1)))
    for number in range(1, parents):
        evict(f"other{number}")
    first = counted(lambda: evict("one"))
    evict("other0")
    again = counted(lambda: store("base"))
    connection.close()
    return first, again


def test_evicted_parents_of_a_base_layer_cost_the_writer_nothing(tmp_path: Path) -> None:
    few, many = effort(2, tmp_path / "few.sqlite"), effort(300, tmp_path / "many.sqlite")
    assert many[0] <= few[0] + 10
    assert many[1] <= few[1] + 10
