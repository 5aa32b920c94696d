"""Tags, proofs, records and the way writes become durable."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from proxy.oci.descriptor import Descriptor
from proxy.oci.names import Tag
from proxy.oci.platforms import Platform
from proxy.store.catalog import Catalog, Proof
from proxy.store.disk import Disk
from proxy.store.errors import CatalogError, CatalogTooNew, StoreClosed
from proxy.store.writer import Transaction
from tests.store.contents import ALPINE, BUSYBOX, TYPES, child, digest, lose, parsed, put

LATEST = Tag("latest")
ONE = Descriptor(TYPES["image"], digest("one"), 3)
TWO = Descriptor(TYPES["image"], digest("two"), 3)


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


async def test_a_tag_is_kept_with_when_and_what(catalog: Catalog) -> None:
    assert await catalog.tag(ALPINE, LATEST) is None
    assert await catalog.put_tag(ALPINE, LATEST, ONE, 1000.0)
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert record.descriptor == ONE
    assert (record.observed_at, record.checked_at, record.origin) == (1000.0, 1000.0, "local")
    assert record.version >> 16 == 1000_000
    assert await catalog.tag(BUSYBOX, LATEST) is None  # P44


async def test_the_version_of_a_tag_changes_only_with_its_digest(catalog: Catalog, tmp_path: Path) -> None:
    await catalog.put_tag(ALPINE, LATEST, ONE, 1000.0)
    before = await catalog.tag(ALPINE, LATEST)
    assert not await catalog.put_tag(ALPINE, LATEST, ONE, 2000.0)
    same = await catalog.tag(ALPINE, LATEST)
    assert before is not None
    assert same is not None
    assert (same.version, same.observed_at, same.checked_at) == (before.version, 1000.0, 2000.0)
    assert rows(tmp_path / "catalog.sqlite", "SELECT seq FROM tag") == [(1,)]
    assert await catalog.put_tag(ALPINE, LATEST, TWO, 500.0)
    moved = await catalog.tag(ALPINE, LATEST)
    assert moved is not None
    assert moved.descriptor == TWO
    assert moved.version > before.version  # though the wall clock went back


async def test_a_check_that_is_written_late_takes_nothing_back(tmp_path: Path) -> None:  # P44
    file = tmp_path / "catalog.sqlite"
    catalog = await Catalog.open(file, Disk())
    await catalog.put_tag(ALPINE, LATEST, ONE, 1000.0)
    await catalog.touch_tag(ALPINE, LATEST, 1001.0)  # written with the next batch
    await catalog.deny_tag(ALPINE, LATEST, 1002.0)
    await catalog.put_tag(ALPINE, LATEST, TWO, 1003.0)
    found = await catalog.tag(ALPINE, LATEST)
    assert found is not None
    assert (found.checked_at, found.gone) == (1003.0, False)
    await catalog.aclose()
    catalog = await Catalog.open(file, Disk())
    again = await catalog.tag(ALPINE, LATEST)
    assert again is not None
    assert (again.checked_at, again.gone) == (1003.0, False)
    await catalog.touch_tag(ALPINE, LATEST, 500.0)  # the clock was wrong, and is put right
    await catalog.aclose()
    catalog = await Catalog.open(file, Disk())
    assert (right := await catalog.tag(ALPINE, LATEST)) is not None
    assert right.checked_at == 500.0
    await catalog.aclose()


async def test_a_check_is_seen_at_once_and_survives_closing(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = await Catalog.open(path, Disk())
    await catalog.put_tag(ALPINE, LATEST, ONE, 1000.0)
    await catalog.touch_tag(ALPINE, LATEST, 2000.0)
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert record.checked_at == 2000.0
    await catalog.aclose()
    assert rows(path, "SELECT checked_at, seq FROM tag") == [(2000.0, 1)]


async def test_a_check_is_seen_before_it_is_written_also_when_the_tag_is_cached_nowhere(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, ONE, 1000.0)
    await catalog.touch_tag(ALPINE, LATEST, 2000.0)
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert record.checked_at == 2000.0


async def test_tags_are_listed_in_ascii_order_after_the_last(catalog: Catalog) -> None:  # P11
    for name in ("b", "B", "a.1", "a-1", "_x", "10", "9"):
        await catalog.put_tag(ALPINE, Tag(name), ONE, 1.0)
    await catalog.put_tag(BUSYBOX, Tag("other"), ONE, 1.0)
    assert await catalog.list_tags(ALPINE, None, 100) == ["10", "9", "B", "_x", "a-1", "a.1", "b"]
    assert await catalog.list_tags(ALPINE, "9", 2) == ["B", "_x"]
    assert await catalog.list_tags(ALPINE, "b", 2) == []


async def test_a_proof_holds_for_its_repository_alone(catalog: Catalog, tmp_path: Path) -> None:  # P43
    await catalog.prove(ALPINE, digest("layer"), Proof.HEAD)
    await catalog.prove(ALPINE, digest("layer"), Proof.FETCHED)
    assert await catalog.has_membership(ALPINE, digest("layer"))
    assert not await catalog.has_membership(BUSYBOX, digest("layer"))
    assert rows(tmp_path / "catalog.sqlite", "SELECT proof FROM membership") == [("head",)]


async def test_named_in_follows_only_manifests_that_the_repository_has(catalog: Catalog) -> None:  # P43
    await put(catalog, "image", parsed("image", child("layer")), repository=BUSYBOX)
    assert await catalog.named_in(BUSYBOX, digest("layer"))
    assert not await catalog.named_in(ALPINE, digest("layer"))
    await catalog.prove(ALPINE, digest("image"), Proof.HEAD)
    assert await catalog.named_in(ALPINE, digest("layer"))


async def test_a_subject_is_not_named(catalog: Catalog) -> None:  # P43
    await put(catalog, "signature", parsed("artifact", child("payload"), subject="private"))
    assert not await catalog.named_in(ALPINE, digest("private"))


async def test_public_stays_once_it_was(catalog: Catalog) -> None:
    await put(catalog, "layer", public=True)
    await put(catalog, "layer", public=False)
    record = await catalog.blob(digest("layer"))
    assert record is not None
    assert record.public


async def test_a_manifest_that_comes_again_as_a_blob_stays_a_manifest(catalog: Catalog) -> None:
    await put(catalog, "image", parsed("image", child("layer")))
    await put(catalog, "image")
    record = await catalog.blob(digest("image"))
    assert record is not None
    assert record.media_type == TYPES["image"]
    assert not record.complete


async def test_a_blob_that_turns_out_to_be_a_manifest_becomes_one(catalog: Catalog) -> None:
    await put(catalog, "index", parsed("index", child("image", "manifest")))
    await put(catalog, "image")
    index = await catalog.blob(digest("index"))
    assert index is not None
    assert index.complete
    await put(catalog, "image", parsed("image", child("layer")))
    index = await catalog.blob(digest("index"))
    assert index is not None
    assert not index.servable


async def test_an_index_is_servable_with_one_child_and_complete_with_all(catalog: Catalog) -> None:  # P27
    await put(catalog, "index", parsed("index", child("amd64", "manifest"), child("arm64", "manifest")))
    await put(catalog, "amd64", parsed("image", child("layer")))
    await put(catalog, "arm64", parsed("image", child("other layer")))

    async def state() -> tuple[bool, bool]:
        record = await catalog.blob(digest("index"))
        assert record is not None
        return record.servable, record.complete

    assert await state() == (False, False)
    await put(catalog, "layer")
    assert await state() == (True, False)
    await put(catalog, "other layer")
    assert await state() == (True, True)
    await lose(catalog, "layer")
    assert await state() == (True, False)
    await lose(catalog, "index")
    assert await state() == (False, False)


async def test_a_layer_that_is_not_required_is_not_missed(catalog: Catalog) -> None:  # P40
    await put(catalog, "image", parsed("image", child("foreign", required=False)))
    record = await catalog.blob(digest("image"))
    assert record is not None
    assert record.complete


async def test_a_digest_mentioned_twice_counts_once(catalog: Catalog) -> None:
    twice = parsed("image", child("empty", "config"), child("empty", required=False), child("empty"))
    await put(catalog, "image", twice)
    await put(catalog, "empty")
    record = await catalog.blob(digest("image"))
    assert record is not None
    assert record.complete


async def test_children_come_back_as_they_were_named(catalog: Catalog) -> None:
    manifest = parsed(
        "index",
        child("z", "manifest", platform=Platform("linux", "arm64", "v8")),
        child("a", "manifest", platform=Platform("linux", "amd64")),
        child("m", "manifest"),
    )
    await put(catalog, "index", manifest)
    assert await catalog.children(digest("index")) == manifest.children


async def test_the_expected_size_is_what_all_who_name_it_agree_on(catalog: Catalog) -> None:
    assert await catalog.expected_size(digest("layer")) is None
    await put(catalog, "one", parsed("image", child("layer", size=5)))
    assert await catalog.expected_size(digest("layer")) == 5
    await put(catalog, "liar", parsed("image", child("layer", size=6)))
    assert await catalog.expected_size(digest("layer")) is None
    await put(catalog, "layer")
    await lose(catalog, "layer")
    assert await catalog.expected_size(digest("layer")) == 5


async def test_totals_follow_every_change(catalog: Catalog) -> None:
    await put(catalog, "image", parsed("image", child("layer")))
    await put(catalog, "layer")
    await put(catalog, "layer")
    await catalog.put_tag(ALPINE, LATEST, ONE, 1.0)
    await catalog.put_tag(ALPINE, LATEST, TWO, 2.0)
    assert await catalog.totals() == (2, len("imagelayer"), 1, 1, 1)
    await lose(catalog, "image")
    await lose(catalog, "image")
    assert await catalog.totals() == (1, len("layer"), 0, 1, 1)


async def test_uses_are_collected_and_written_when_it_closes(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = await Catalog.open(path, Disk())
    await put(catalog, "layer")
    ((before,),) = rows(path, "SELECT last_use FROM blob")
    for _ in range(100):
        catalog.touch(digest("layer"))
    assert rows(path, "SELECT last_use FROM blob") == [(before,)]
    await catalog.aclose()
    ((after,),) = rows(path, "SELECT last_use FROM blob")
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after > before


async def test_every_record_is_stamped_and_the_counter_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = await Catalog.open(path, Disk())
    epoch = catalog.epoch
    await put(catalog, "layer")
    first = await catalog.add_intent(digest("x"), None, ALPINE)
    await catalog.aclose()
    catalog = await Catalog.open(path, Disk())
    assert catalog.epoch == epoch
    assert await catalog.add_intent(digest("x"), None, ALPINE) > first
    await put(catalog, "other")
    await catalog.aclose()
    seqs = [seq for (seq,) in rows(path, "SELECT seq FROM blob UNION ALL SELECT seq FROM membership")]
    assert len(set(seqs)) == 4


async def test_writes_that_wait_share_one_transaction(catalog: Catalog) -> None:
    commits = 0
    seen: list[sqlite3.Connection] = []

    def watch(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    def operation(transaction: Transaction) -> int:
        if not seen:
            seen.append(transaction.connection)
            transaction.connection.set_trace_callback(watch)
        return transaction.stamp()

    results = await asyncio.gather(*(catalog._writer.write(operation) for _ in range(200)))
    assert len(set(results)) == 200
    assert commits < 20


async def test_an_operation_that_fails_harms_no_other_of_its_transaction(catalog: Catalog) -> None:
    def fail(transaction: Transaction) -> None:
        transaction.repository(BUSYBOX)
        raise ValueError("refused")

    results = await asyncio.gather(
        catalog.put_tag(ALPINE, LATEST, ONE, 1.0),
        catalog._writer.write(fail),
        catalog.put_tag(BUSYBOX, LATEST, TWO, 1.0),
        return_exceptions=True,
    )
    assert results[0] is True
    assert isinstance(results[1], ValueError)
    assert results[2] is True
    for repository, expected in ((ALPINE, ONE), (BUSYBOX, TWO)):
        record = await catalog.tag(repository, LATEST)
        assert record is not None
        assert record.descriptor == expected


async def test_a_read_under_way_while_a_write_commits_does_not_leave_an_old_answer_behind(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, ONE, 1.0)
    for number in range(50):
        target = (ONE, TWO)[number % 2]
        reads = [asyncio.create_task(catalog.tag(ALPINE, LATEST)) for _ in range(3)]
        await catalog.put_tag(ALPINE, LATEST, target, float(number))
        record = await catalog.tag(ALPINE, LATEST)
        assert record is not None
        assert record.descriptor == target
        await asyncio.gather(*reads)
        record = await catalog.tag(ALPINE, LATEST)
        assert record is not None
        assert record.descriptor == target


async def test_a_writer_who_is_cancelled_has_still_written_and_the_caches_know(catalog: Catalog) -> None:
    await catalog.put_tag(ALPINE, LATEST, ONE, 1.0)
    await catalog.tag(ALPINE, LATEST)
    task = asyncio.create_task(catalog.put_tag(ALPINE, LATEST, TWO, 2.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await catalog.put_tag(BUSYBOX, LATEST, ONE, 3.0)
    record = await catalog.tag(ALPINE, LATEST)
    assert record is not None
    assert record.descriptor == TWO


async def test_a_closed_catalog_says_so(tmp_path: Path) -> None:
    catalog = await Catalog.open(tmp_path / "catalog.sqlite", Disk())
    await catalog.aclose()
    with pytest.raises(StoreClosed):
        await catalog.put_tag(ALPINE, LATEST, ONE, 1.0)


async def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CatalogTooNew, match="schema 99"):
        await Catalog.open(path, Disk())
    assert path.exists()


async def test_a_damaged_file_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database, whatever else it is" * 500)
    catalog = await Catalog.open(path, Disk())
    assert await catalog.totals() == (0, 0, 0, 0, 0)
    await catalog.aclose()
    (name,) = (name for name in os.listdir(tmp_path) if name.startswith("catalog.sqlite.damaged-"))
    aside = tmp_path / name
    assert aside.read_bytes().startswith(b"this is no database")
    assert str(aside) in caplog.text
    assert "in the background" in caplog.text


async def test_a_file_that_cannot_be_opened_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.mkdir()
    with pytest.raises(CatalogError, match=r"catalog\.sqlite cannot be opened"):
        await Catalog.open(path, Disk())
    assert path.is_dir()
