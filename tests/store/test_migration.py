"""Catalogs of earlier versions are brought up to date when they are opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from proxy.oci.descriptor import Descriptor
from proxy.oci.names import Tag
from proxy.store import schema, steps
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from tests.store.contents import ALPINE, TYPES, digest

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
