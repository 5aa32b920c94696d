"""The change feed of one catalog: what it tells, what it takes over, and what it costs."""

from __future__ import annotations

import re
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, strategies as st

from proxy.oci.descriptor import Descriptor
from proxy.oci.names import Repository, Tag
from proxy.store import copying, feed, merging, tagrows
from proxy.store.catalog import Catalog, Proof
from proxy.store.coherence import Coherence
from proxy.store.disk import Disk
from proxy.store.exchanged import Cursor, MembershipChange, Page, PinChange, TagChange, is_ahead
from proxy.store.schema import connect
from tests.store.contents import ALPINE, BUSYBOX, TYPES, child, digest, parsed, put

LATEST = Tag("latest")


def image(name: str) -> Descriptor:
    return Descriptor(TYPES["image"], digest(name), len(name))


async def changes(catalog: Catalog, since: int = 0, limit: int = 100) -> Page:
    return await catalog.read(lambda connection: feed.read_page(connection, catalog.epoch, since, limit, cursors=True))


async def take(catalog: Catalog, page: Page, node: str = "http://a:1") -> list[feed.Merged]:
    """Merge the whole page; return the steps."""
    steps: list[feed.Merged] = []
    while not steps or steps[-1].done < len(page.records):
        repositories = [Repository(*name) for name in page.repositories]
        steps.append(await catalog.merge(page, repositories, steps[-1].done if steps else 0, node))
    return steps


def page_of(*records: TagChange | MembershipChange | PinChange, epoch: str = "e") -> Page:
    last = records[-1].seq if records else 0
    return Page(epoch, last, last, repositories=[(ALPINE.upstream, ALPINE.path)], records=list(records))


def tag(seq: int, version: int, name: str | None, checked_at: float = 5.0) -> TagChange:
    what = image(name) if name else None
    return TagChange(
        seq,
        0,
        LATEST,
        version,
        what.digest if what else None,
        what.media_type if what else None,
        what.size if what else None,
        "",
        5.0,
        checked_at,
    )


def member(seq: int, version: int, name: str, *, removed: bool = False) -> MembershipChange:
    return MembershipChange(seq, 0, digest(name), version, removed, Proof.FETCHED, 5.0)


async def test_the_feed_tells_of_tags_memberships_and_pins_in_the_order_in_which_they_changed(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    await catalog.prove(BUSYBOX, digest("two"), Proof.HEAD)
    await catalog.pin(ALPINE, LATEST)
    await catalog.remove(BUSYBOX, digest("two"))
    await put(catalog, "blobs are nobody else's business", repository=None)
    page = await changes(catalog)
    assert [(type(record).__name__, page.repositories[record.at]) for record in page.records] == [
        ("TagChange", ALPINE),
        ("PinChange", ALPINE),
        ("MembershipChange", BUSYBOX),
    ]
    assert [record.removed for record in page.records if isinstance(record, MembershipChange)] == [True]
    assert (page.next, page.more, page.restart) == (page.head, False, False)


async def test_pages_of_any_size_tell_the_same_and_the_last_one_says_so(catalog: Catalog) -> None:
    for number in range(7):
        await catalog.prove(ALPINE, digest(f"blob {number}"), Proof.FETCHED)
        await catalog.put_tag(ALPINE, Tag(f"v{number}"), image(f"blob {number}"), 10.0)
    whole = await changes(catalog)
    for limit in (1, 3, 14, 15):
        seqs: list[int] = []
        page = await changes(catalog, 0, limit)
        while True:
            assert len(page.records) <= limit
            seqs += [record.seq for record in page.records]
            if not page.more:
                break
            page = await changes(catalog, page.next, limit)
        assert seqs == [record.seq for record in whole.records]
        assert page.next == page.head


async def test_a_position_of_another_epoch_or_beyond_the_head_begins_anew(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    head = (await changes(catalog)).head
    assert (await changes(catalog, head + 1)).restart
    assert (await catalog.read(lambda connection: feed.read_page(connection, "other", 0, 10))).restart
    assert not (await changes(catalog, head)).restart


async def test_a_page_taken_twice_changes_nothing_the_second_time_and_stamps_nothing(catalog: Catalog) -> None:
    page = page_of(tag(1, 10, "one"), member(2, 11, "one"), PinChange(3, 0, LATEST, 12, False, 5.0))
    (first,) = await take(catalog, page)
    assert (first.tags, first.memberships, first.pins) == (1, 1, 1)
    head = (await changes(catalog)).head
    (again,) = await take(catalog, page)
    assert (again.tags, again.memberships, again.pins) == (0, 0, 0)
    assert (await changes(catalog)).head == head
    assert await catalog.has_membership(ALPINE, digest("one"))
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert (record.descriptor, record.version) == (image("one"), 10)


async def test_what_was_taken_over_is_passed_on_with_its_version(catalog: Catalog) -> None:
    await take(catalog, page_of(tag(40, 10, "one"), member(41, 11, "two", removed=True)))
    told = await changes(catalog)
    assert [(record.version, record.seq <= told.head) for record in told.records] == [(10, True), (11, True)]
    assert [record.digest for record in told.records if not isinstance(record, PinChange)] == [
        digest("one"),
        digest("two"),
    ]
    assert told.cursors == [Cursor("e", "http://a:1", 41)]


async def test_a_removal_elsewhere_ends_what_this_node_had_in_its_caches(catalog: Catalog) -> None:
    await put(catalog, "layer", repository=None, public=True)
    await put(catalog, "image", parsed("image", child("layer")))
    await catalog.put_tag(ALPINE, LATEST, image("image"), 10.0)
    assert await catalog.tag(ALPINE, LATEST)
    assert await catalog.has_membership(ALPINE, digest("image"))
    assert await catalog.named_in(ALPINE, digest("layer"))
    moves = catalog.moves
    later = int(time.time() * 1000 + 1000) << 16
    await take(catalog, page_of(tag(1, later, None), member(2, later + 1, "image", removed=True)))
    assert await catalog.tag(ALPINE, LATEST) is None
    assert not await catalog.has_membership(ALPINE, digest("image"))
    assert not await catalog.named_in(ALPINE, digest("layer"))
    assert catalog.moves != moves


async def test_what_is_new_here_leaves_answers_to_clients_alone(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, Tag("other"), image("one"), 10.0)
    moves = catalog.moves
    await take(catalog, page_of(tag(1, 10, "one"), member(2, 11, "one")))
    assert catalog.moves == moves


async def test_another_process_hears_of_what_was_taken_over(tmp_path: Path) -> None:
    coherence = Coherence()
    owner = await Catalog.open(tmp_path / "catalog.sqlite", Disk(), coherence)
    worker = await Catalog.attach(tmp_path / "catalog.sqlite", coherence)
    try:
        await owner.put_tag(ALPINE, LATEST, image("one"), 10.0)
        assert await worker.tag(ALPINE, LATEST)
        number = worker.published.number
        await take(owner, page_of(tag(1, int(time.time() * 1000 + 1000) << 16, "two")))
        moved = await worker.tag(ALPINE, LATEST)
        assert moved is not None
        assert moved.digest == digest("two")
        assert await worker.published.wait(number, 1.0)
    finally:
        await worker.aclose()
        await owner.aclose()


async def test_the_clock_of_a_catalog_never_falls_behind_what_it_heard(catalog: Catalog) -> None:
    ahead = int((time.time() + 200) * 1000) << 16
    await take(catalog, page_of(tag(1, ahead, "one")))
    await catalog.put_tag(ALPINE, LATEST, image("two"), time.time())
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert (record.digest, record.version) == (digest("two"), ahead + 1)


async def test_a_clock_a_day_ahead_is_refused_and_the_rest_taken(catalog: Catalog) -> None:
    ahead = int((time.time() + 86400) * 1000) << 16
    (merged,) = await take(catalog, page_of(tag(1, ahead, "one"), member(2, 7, "two")))
    assert (merged.refused, merged.tags, merged.memberships) == (1, 0, 1)
    assert await catalog.tag(ALPINE, LATEST) is None


async def test_times_of_a_clock_ahead_are_cut_to_ours(catalog: Catalog) -> None:
    await take(catalog, page_of(tag(1, 7, "one", checked_at=time.time() + 200)))
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert record.checked_at <= time.time()


async def test_an_upstreams_refusal_outlives_what_was_seen_before_it(catalog: Catalog) -> None:  # P44
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    await catalog.deny_tag(ALPINE, LATEST, 100.0)
    later = int(time.time() * 1000 + 1000) << 16
    await take(catalog, page_of(tag(1, later, "two", checked_at=90.0)))
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert (record.digest, record.gone) == (digest("two"), True)
    await take(catalog, page_of(tag(2, later + 1, "three", checked_at=110.0)))
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert not record.gone


async def test_steps_are_short_and_the_place_between_them_is_kept(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "STEP_SECONDS", 0.0)
    page = page_of(*(member(number, number, f"blob {number}") for number in range(1, 41)))
    steps = await take(catalog, page)
    assert [step.done for step in steps] == [16, 32, 40]
    first = await catalog.merge(page, [ALPINE], 0, "http://b:1")
    assert (await changes(catalog)).cursors[0].seq == 40  # never backwards
    assert first.memberships == 0


async def test_another_epoch_of_a_node_ends_what_was_read_of_the_one_before(catalog: Catalog) -> None:
    await take(catalog, page_of(tag(9, 7, "one"), epoch="before"))
    await take(catalog, page_of(tag(1, 7, "one"), epoch="after"))
    assert (await changes(catalog)).cursors == [Cursor("after", "http://a:1", 1)]


async def test_what_a_node_has_read_of_others_counts_here_once_all_of_it_was_taken(catalog: Catalog) -> None:
    await take(catalog, Page("a", 9, 9, cursors=[Cursor("c", "http://c:1", 80), Cursor(catalog.epoch, "me", 3)]))
    assert {cursor.epoch for cursor in (await changes(catalog)).cursors} == {"a", "c"}


async def test_who_read_further_than_there_is_has_read_another_history(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, image("one"), 10.0)
    before = catalog.epoch
    assert not await catalog.write(lambda transaction: feed.look_back(transaction, [Cursor(before, "me", 1)]))
    assert catalog.epoch == before
    assert await catalog.write(lambda transaction: feed.look_back(transaction, [Cursor(before, "me", 2)]))
    assert catalog.epoch != before
    told = await catalog.read(lambda connection: feed.read_page(connection, before, 2, 10))
    assert (told.epoch, told.restart) == (catalog.epoch, True)


async def test_a_large_index_that_ends_elsewhere_costs_the_event_loop_no_walk_over_its_children(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MOST_NAMED", 2)
    children = [child(f"layer {number}") for number in range(5)]
    for one in ("image", "other"):
        await put(catalog, one, parsed(one, *children))
        assert await catalog.named_in(ALPINE, digest("layer 4"))
        later = int(time.time() * 1000 + 1000) << 16
        if one == "image":
            (merged,) = await take(catalog, page_of(member(1, later, one, removed=True)))
            assert (len(merged.void_named), merged.void_all) == (3, True)
        else:
            await catalog.remove(ALPINE, digest(one))
        assert not await catalog.named_in(ALPINE, digest("layer 4"))
        assert not await catalog.has_membership(ALPINE, digest(one))


MEMBERS = st.builds(
    lambda version, removed: member(1, version, "one", removed=removed), st.integers(0, 3), st.booleans()
)


@given(st.lists(MEMBERS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_in_which_memberships_meet_is_of_no_account(records: list[MembershipChange], random: Random) -> None:
    def settled(order: list[MembershipChange]) -> tuple[int, bool]:
        kept = order[0]
        for record in order:
            if record.rank > kept.rank:
                kept = record
        return kept.rank

    shuffled = list(records)
    random.shuffle(shuffled)
    assert settled(shuffled) == settled(records) == settled(records * 2)


def test_of_an_addition_and_a_removal_of_one_version_the_addition_stays() -> None:
    assert member(1, 7, "one").rank > member(2, 7, "one", removed=True).rank
    assert member(1, 7, "one").rank < member(2, 8, "one", removed=True).rank


def test_five_minutes_ahead_is_the_most() -> None:
    assert not is_ahead((1299 * 1000) << 16, 1000.0)
    assert is_ahead((1301 * 1000) << 16, 1000.0)


@pytest.mark.parametrize("statement", [*feed.STATEMENTS, *merging.STATEMENTS, *tagrows.STATEMENTS])
def test_the_feed_searches_by_index(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    plan = [
        row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", ["1"] * statement.count("?")).fetchall()
    ]
    connection.close()
    assert [step for step in plan if re.match(r"SCAN|USE TEMP", step)] == []


@pytest.mark.parametrize("statement", copying.STATEMENTS)
def test_a_copy_searches_by_index_and_sorts_nothing(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    about = {"key": "k", "repository": 1, "limit": 9}
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", about).fetchall()]
    connection.close()
    assert [step for step in plan if re.match(r"SCAN|USE TEMP", step)] == []


def test_a_page_without_news_reads_as_much_of_a_large_catalog_as_of_a_small_one(tmp_path: Path) -> None:
    def steps(rows: int) -> int:
        connection = connect(tmp_path / f"{rows}.sqlite")
        connection.execute("INSERT INTO repository VALUES (1, 'docker.io', 'library/alpine')")
        connection.executemany(
            "INSERT INTO membership (repository, digest, proof, proved_at, seq, version) "
            "VALUES (1, ?, 'head', 1.0, ?, ?)",
            [(str(n), n, n) for n in range(1, rows + 1)],
        )
        # What came after it are blobs alone, which are not told.
        connection.execute("UPDATE meta SET value = ? WHERE key = 'seq'", (rows + 50,))
        epoch = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0]
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        connection.set_progress_handler(tick, 1)
        page = feed.read_page(connection, epoch, rows, 1000)
        connection.set_progress_handler(None, 0)
        connection.close()
        assert (page.records, page.next) == ([], rows + 50)
        return count

    assert steps(2000) == steps(20)
