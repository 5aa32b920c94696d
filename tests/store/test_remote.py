"""What other regions said and this catalog does not say yet waits in rows of its own, per peer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.records import Proof
from proxy.store.remote import STATEMENTS, Counts, count_waiting, postpone, put_waiting, read_waiting, settle
from proxy.store.schema import connect
from proxy.store.writer import Transaction
from tests.store.contents import ALPINE, BUSYBOX, TYPES, digest


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(tmp_path / "catalog.sqlite", Disk())
    await opened.write(lambda transaction: transaction.connection.execute("INSERT INTO peer VALUES (1, 'b', NULL)"))
    yield opened
    await opened.aclose()


def tag(name: str, says: str | None, version: int = 1) -> TagChange:
    return TagChange(7, 3, name, version, says and str(digest(says)), TYPES["image"], 9, "b", 1.0, 1.0)


def member(name: str, *, removed: bool = False) -> MembershipChange:
    return MembershipChange(8, 0, str(digest(name)), 5, removed, Proof.SYNCED, 1.0, "")


def put(
    transaction: Transaction, place: int, record: TagChange | MembershipChange, now: float, ahead: float | None = None
) -> bool:
    repository = transaction.repository(BUSYBOX if place >= 100 else ALPINE)
    return put_waiting(transaction, 1, place, repository, f"k{place}", record, now, ahead)


async def test_what_waits_is_read_by_when_it_is_due(catalog: Catalog) -> None:
    def work(transaction: Transaction) -> None:
        put(transaction, 1, tag("one", "x"), 10.0)
        put(transaction, 2, member("y"), 11.0)
        put(transaction, 101, tag("two", "z"), 12.0)
        (first, *_) = read_waiting(transaction.connection, "b", 9, repository=BUSYBOX)
        postpone(transaction, first, "no route", 99.0)

    await catalog.write(work)
    waiting = await catalog.read(lambda connection: read_waiting(connection, "b", 9))
    assert [one.place for one in waiting] == [1, 2, 101]
    assert waiting[0].record == msgspec.structs.replace(tag("one", "x"), seq=0, at=0)
    assert (waiting[2].tries, waiting[2].error, waiting[2].next_at, waiting[2].since) == (1, "no route", 99.0, 12.0)
    assert [one.place for one in await catalog.read(lambda c: read_waiting(c, "b", 9, due=50.0))] == [1, 2]
    assert [one.place for one in await catalog.read(lambda c: read_waiting(c, "b", 1))] == [1]
    assert [one.place for one in await catalog.read(lambda c: read_waiting(c, "b", 9, None, ALPINE))] == [1, 2]
    assert await catalog.read(lambda connection: read_waiting(connection, "elsewhere", 9)) == []


async def test_what_said_something_else_meanwhile_is_neither_settled_nor_postponed(catalog: Catalog) -> None:
    await catalog.write(lambda transaction: put(transaction, 1, tag("one", "x"), 10.0))
    (before,) = await catalog.read(lambda connection: read_waiting(connection, "b", 9))
    await catalog.write(lambda transaction: postpone(transaction, before, "failed", 60.0))
    assert not await catalog.write(lambda transaction: put(transaction, 1, tag("one", "x"), 20.0))
    (kept,) = await catalog.read(lambda connection: read_waiting(connection, "b", 9))
    assert (kept.tries, kept.next_at) == (1, 60.0)

    assert await catalog.write(lambda transaction: put(transaction, 1, tag("one", "y", 2), 30.0))
    await catalog.write(lambda transaction: settle(transaction, [before]))
    await catalog.write(lambda transaction: postpone(transaction, before, "failed", 60.0))
    (after,) = await catalog.read(lambda connection: read_waiting(connection, "b", 9))
    assert (after.record.digest, after.tries, after.next_at, after.since) == (digest("y"), 0, 0.0, 10.0)
    await catalog.write(lambda transaction: settle(transaction, [after]))
    assert await catalog.read(lambda connection: read_waiting(connection, "b", 9)) == []


async def test_images_removals_and_versions_ahead_are_counted_apart(catalog: Catalog) -> None:
    def work(transaction: Transaction) -> None:
        put(transaction, 1, tag("one", "x"), 12.0)
        put(transaction, 2, member("y"), 11.0)
        put(transaction, 3, tag("gone", None), 5.0)
        put(transaction, 4, member("z", removed=True), 6.0)
        put(transaction, 5, tag("ahead", "v"), 7.0, ahead=1000.0)

    await catalog.write(work)
    assert await catalog.read(lambda connection: count_waiting(connection, "b", 20.0)) == Counts(2, 2, 1, 11.0)
    assert await catalog.read(lambda connection: count_waiting(connection, "b", 2000.0)) == Counts(3, 2, 0, 7.0)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_waits_is_found_by_index(tmp_path: Path, statement: str) -> None:
    connection = connect(tmp_path / "catalog.sqlite")
    values = dict.fromkeys(re.findall(r":(\w+)", statement), "x")
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    connection.close()
    assert any("pending" in step and step.startswith("SEARCH") for step in plan)
    assert [step for step in plan if re.match(r"SCAN|.*ORDER BY", step)] == []
