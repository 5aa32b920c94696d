"""Catalogs of earlier versions are brought up to date when they are opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from unittest.mock import Mock

import pytest

from proxy.oci.descriptor import Descriptor
from proxy.oci.names import Tag
from proxy.store import roots, schema, steps
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from tests.store.contents import ALPINE, TYPES, digest
from tests.store.rooted import agree

LATEST = Tag("latest")
ONE = Descriptor(TYPES["image"], digest("one"), 3)


def make_first(path: Path) -> None:
    """Write a catalog as version 1 did, with one tag in it."""
    connection = sqlite3.connect(path, isolation_level=None)
    schema._create(connection)
    connection.execute("INSERT INTO repository (id, upstream, path) VALUES (1, ?, ?)", ALPINE)
    connection.execute(
        "INSERT INTO tag (repository, name, digest, media_type, size, version, origin, observed_at, checked_at, seq) "
        "VALUES (1, ?, ?, ?, 3, 7, '', 1000, 1000, 1)",
        (LATEST, ONE.digest, ONE.media_type),
    )
    connection.close()


def described(path: Path) -> dict[str, list[str]]:
    connection = sqlite3.connect(path)
    try:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master ORDER BY name")]
        return {name: [str(row) for row in connection.execute(f"PRAGMA table_info('{name}')")] for name in names}
    finally:
        connection.close()


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


async def test_a_catalog_of_version_1_keeps_what_it_knows_and_learns_the_rest(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    make_first(old)
    assert version(old) == 1
    catalog = await Catalog.open(old, Disk())
    try:
        record = await catalog.tag(ALPINE, LATEST)
        assert record is not None
        assert (record.descriptor, record.version, record.pending) == (ONE, 7, None)
        await catalog.hold_tag(ALPINE, LATEST, digest("two"), 2000.0)
        held = await catalog.tag(ALPINE, LATEST)
        assert held is not None
        assert (held.descriptor, held.pending, held.pending_at) == (ONE, digest("two"), 2000.0)
    finally:
        await catalog.aclose()
    fresh = await Catalog.open(new, Disk())
    await fresh.aclose()
    assert version(old) == version(new) == schema.VERSION
    assert described(old) == described(new)


def make_third(path: Path) -> None:
    """Write a catalog as version 3 did, with a membership and a pin in it."""
    make_first(path)
    connection = sqlite3.connect(path, isolation_level=None)
    for number in (2, 3):
        for statement in steps.STEPS[number]:
            connection.execute(statement)
    connection.execute("PRAGMA user_version = 3")
    connection.execute("INSERT INTO membership VALUES (1, ?, 'fetched', 1000, 2)", (ONE.digest,))
    connection.execute("INSERT INTO pin VALUES (1, ?, 1000, 3)", (LATEST,))
    connection.close()


async def test_a_catalog_of_version_3_keeps_its_memberships_and_pins_as_older_than_any_removal(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    make_third(path)
    catalog = await Catalog.open(path, Disk())
    try:
        assert await catalog.has_membership(ALPINE, ONE.digest)
        assert await catalog.read(lambda read: read.execute("SELECT version, removed FROM pin").fetchall()) == [(0, 0)]
        assert await catalog.unpin(ALPINE, LATEST)
        assert (await catalog.remove(ALPINE, ONE.digest)).digests == (ONE.digest,)
        assert not await catalog.has_membership(ALPINE, ONE.digest)
    finally:
        await catalog.aclose()
    assert version(path) == schema.VERSION


def test_a_step_that_fails_leaves_the_catalog_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalog.sqlite"
    make_first(path)
    before = described(path)
    monkeypatch.setattr(schema, "STEPS", steps.STEPS | {2: (*steps.STEPS[2], "ALTER TABLE nowhere RENAME TO x")})
    with pytest.raises(sqlite3.OperationalError):
        schema.connect(path)
    assert version(path) == 1
    assert described(path) == before


def make_fourth(path: Path, images: int) -> None:
    """Write a catalog as version 4 did: images, each with a tag and a layer, an index, a signature, one removed."""
    make_third(path)
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in steps.STEPS[4]:
        connection.execute(statement)
    connection.execute("PRAGMA user_version = 4")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO cursor VALUES ('e', 'http://node:1', 7, 1000)")
    blobs, members, edges, tags = [], [], [], []
    for number in range(images):
        manifest, layer = digest(f"manifest {number}"), digest(f"layer {number}")
        blobs += [(manifest, TYPES["image"]), (layer, None)]
        members += [(manifest, 0), (layer, 0)]
        edges.append((manifest, layer))
        tags.append((f"v{number}", manifest))
    for name in ("index", "signature"):
        blobs.append((digest(name), TYPES["index"]))
        members.append((digest(name), 0))
    edges.append((digest("index"), digest("manifest 0")))
    members.append((digest("never stored"), 0))
    members.append((digest("gone"), 1))
    blobs.append((digest("gone"), TYPES["image"]))
    connection.executemany(
        "INSERT INTO blob (digest, media_type, size, present, public, last_use, stored_at, seq) "
        "VALUES (?, ?, 3, 1, 0, 1000, 1000, 1)",
        blobs,
    )
    connection.executemany("INSERT INTO edge VALUES (?, ?, 0, 3, 'x', 'layer', NULL, 1)", edges)
    connection.execute("INSERT INTO referrer VALUES (?, ?, NULL)", (digest("index"), digest("signature")))
    connection.executemany(
        "INSERT INTO membership (repository, digest, removed, proof, proved_at, seq, version) "
        "VALUES (1, ?, ?, 'fetched', 1000, ?, 5)",
        [(*member, 10 + number) for number, member in enumerate(members)],
    )
    connection.executemany(
        "INSERT INTO tag (repository, name, digest, media_type, size, version, origin, observed_at, checked_at, seq) "
        "VALUES (1, ?, ?, 'x', 3, 7, '', 1000, 1000, ?)",
        [(*tag, 10_000_000 + number) for number, tag in enumerate(tags)],
    )
    connection.execute("UPDATE meta SET value = 20000000 WHERE key = 'seq'")
    connection.execute("COMMIT")
    connection.close()


async def test_a_catalog_of_version_4_has_the_roots_that_it_would_have_had(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    make_fourth(path, 3)
    catalog = await Catalog.open(path, Disk())
    try:
        says = "SELECT digest, root FROM membership WHERE root IS NOT NULL"
        assert dict(await catalog.read(lambda read: read.execute(says).fetchall())) == {
            digest("manifest 1"): "",
            digest("manifest 2"): "",
            digest("index"): "",
            digest("signature"): digest("index"),
            digest("gone"): "",
        }
        assert await catalog.read(agree) == 5 + 1 + 3
        record = await catalog.tag(ALPINE, Tag("v1"))
        assert record is not None
        assert (record.digest, record.past) == (digest("manifest 1"), ())
        # Another node may know of roots that this one does not, and told them before there were any.
        assert await catalog.read(lambda read: read.execute("SELECT * FROM cursor").fetchall()) == []
    finally:
        await catalog.aclose()


async def test_a_migration_that_is_cut_short_goes_on_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "STEP_ROWS", 2)
    path = tmp_path / "catalog.sqlite"
    make_fourth(path, 9)
    schema.connect(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(roots, "keep_membership", Mock(side_effect=RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            await Catalog.open(path, Disk())
    catalog = await Catalog.open(path, Disk())
    try:
        assert await catalog.read(agree) == 8 + 3 + 10
    finally:
        await catalog.aclose()


def test_bringing_a_large_catalog_up_to_date_takes_as_much_per_record_as_a_small_one(tmp_path: Path) -> None:
    def work(images: int) -> float:
        path = tmp_path / f"{images}.sqlite"
        make_fourth(path, images)
        ticks = 0

        def tick() -> int:
            nonlocal ticks
            ticks += 1
            return 0

        connection = sqlite3.connect(path, isolation_level=None)
        connection.set_progress_handler(tick, 100)
        schema._migrate(connection)
        connection.close()
        return ticks / images

    assert work(1500) < 1.5 * work(300)
