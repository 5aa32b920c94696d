"""A catalog that is damaged or gone: the last good copy takes its place, and the files bring it up to date."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Tag
from proxy.store import opening, touches
from proxy.store.backup import Backup, BackupProgress, backing_up
from proxy.store.disk import Disk
from proxy.store.errors import CatalogError, CatalogTooNew
from proxy.store.records import Proof
from proxy.store.rescan import rescanning
from proxy.store.store import Store
from tests.store.contents import ALPINE
from tests.support.contents import blob, make_image

IMAGE = make_image([blob(3000, seed=1), blob(500, seed=2)])
MANIFEST = Digest(IMAGE.digest)
LATE = blob(800, seed=3)
CATALOG = "catalog.sqlite"
BLOBS = 2000


async def keep(store: Store, data: bytes) -> Digest:
    digest = Digest.of(data)
    spool = await store.begin(digest, len(data), ALPINE)
    await asyncio.to_thread(spool.write, 0, data)
    await store.commit(spool, size=len(data), repository=ALPINE, proof=Proof.FETCHED, public=False)
    return digest


async def fill(store: Store) -> None:
    """Put IMAGE into the store, with a tag."""
    for data in IMAGE.blobs:
        await keep(store, data)
    parsed = parse_manifest(IMAGE.body, IMAGE.media_type)
    await store.put_manifest(
        IMAGE.body, parsed=parsed, repository=ALPINE, proof=Proof.FETCHED, public=False, digest=MANIFEST
    )
    await store.catalog.put_tag(ALPINE, Tag("3"), Descriptor(IMAGE.media_type, MANIFEST, len(IMAGE.body)), time.time())


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Store]:
    store = await Store.open(root)
    try:
        yield store
    finally:
        await store.close()


async def complete(store: Store) -> bool:
    record = await store.catalog.blob(MANIFEST)
    return record is not None and record.complete


def recovers(store: Store) -> bool:
    return store.recovering is not None


def damage(root: Path) -> None:
    """Destroy every page of the catalog but the first, which is all that opening it reads."""
    path = root / CATALOG
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))


def lose(root: Path) -> None:
    (root / CATALOG).unlink()


def erase(root: Path) -> None:
    (root / CATALOG).write_bytes(b"")


LOSSES = pytest.mark.parametrize("loss", [damage, lose, erase])


@LOSSES
async def test_the_backup_takes_the_place_of_a_lost_catalog_and_newer_blobs_are_adopted(
    root: Path, loss: Callable[[Path], None]
) -> None:
    async with opened(root) as store:
        await fill(store)
        epoch = store.catalog.epoch
        await store.back_up()
        late = await keep(store, LATE)
    loss(root)
    async with opened(root) as store:
        assert recovers(store)
        assert store.catalog.epoch != epoch
        assert await complete(store)
        tag = await store.catalog.tag(ALPINE, Tag("3"))
        assert tag is not None
        assert tag.digest == MANIFEST
        assert await store.catalog.blob(late) is None
        await store.rescan()
        assert not recovers(store)
        stored = await store.open_blob(late)
        assert stored is not None
        stored.close()
        assert not await store.catalog.has_membership(ALPINE, late)  # P43
    async with opened(root) as store:
        assert not recovers(store)


@LOSSES
async def test_without_a_backup_all_blobs_are_adopted_and_no_repository_owns_them(
    root: Path, loss: Callable[[Path], None]
) -> None:
    async with opened(root) as store:
        await fill(store)
    loss(root)
    async with opened(root) as store:
        assert await store.catalog.totals() == (0, 0, 0, 0, 0)
        await store.rescan()
        assert await complete(store)
        assert not await store.catalog.has_membership(ALPINE, MANIFEST)  # P43
        assert await store.catalog.tag(ALPINE, Tag("3")) is None


async def test_a_new_data_folder_has_nothing_to_recover(root: Path) -> None:
    for _ in range(2):
        async with opened(root) as store:
            assert not recovers(store)


async def test_what_the_backup_says_is_stored_and_is_not_counts_as_missing(root: Path) -> None:
    async with opened(root) as store:
        await fill(store)
        await store.back_up()
    next((root / "blobs").rglob(Digest.of(IMAGE.blobs[1]).hex)).unlink()
    damage(root)
    async with opened(root) as store:
        await store.rescan()
        assert not await complete(store)


async def test_a_file_that_is_not_what_its_name_says_is_set_aside_and_not_adopted(root: Path) -> None:
    async with opened(root) as store:
        late = await keep(store, LATE)
    (file,) = (root / "blobs").rglob(late.hex)
    file.chmod(0o600)
    file.write_bytes(blob(800, seed=4))
    lose(root)
    async with opened(root) as store:
        await store.rescan()
        assert await store.catalog.blob(late) is None
    assert [path.name.partition(".")[0] for path in (root / "quarantine").iterdir()] == [late.hex]


async def test_a_damaged_backup_is_not_taken(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(root) as store:
        await fill(store)
        await store.back_up()
    backup = root / "catalog.backup.sqlite"
    with backup.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(backup.stat().st_size - 4096))
    lose(root)
    async with opened(root) as store:
        assert await store.catalog.totals() == (0, 0, 0, 0, 0)
        assert "no backup could be used (it is damaged" in caplog.text
        await store.rescan()
        assert await complete(store)


async def test_a_backup_of_a_newer_program_is_not_thrown_away(root: Path) -> None:
    async with opened(root) as store:
        await keep(store, LATE)
        await store.back_up()
    connection = sqlite3.connect(root / "catalog.backup.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    lose(root)
    with pytest.raises(CatalogTooNew, match="schema 99"):
        await Store.open(root)
    assert not (root / CATALOG).exists()


class _Crash(BaseException):
    """What a kill would leave behind at that point."""


class _CrashingDisk(Disk):
    """Ends at its n-th operation that changes a name or syncs one."""

    def __init__(self, left: int) -> None:
        self._left = left

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Crash

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)

    def fsync_folder(self, path: Path) -> None:
        self._step()
        super().fsync_folder(path)

    def fdatasync(self, fd: int) -> None:
        self._step()
        super().fdatasync(fd)

    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)


@pytest.mark.parametrize("backup", ["with a backup", "without a backup"])
async def test_a_recovery_that_ends_anywhere_begins_again(root: Path, backup: str) -> None:
    async with opened(root) as store:
        await fill(store)
        if backup == "with a backup":
            await store.back_up()
    damage(root)
    for step in range(100):
        try:
            connection = await asyncio.to_thread(opening.open_catalog, root / CATALOG, _CrashingDisk(step))
        except _Crash:
            continue
        connection.close()
        break
    assert step > 4
    async with opened(root) as store:
        assert recovers(store)
        await store.rescan()
        assert await complete(store)


async def test_a_rescan_that_was_cut_begins_again_at_the_next_start(root: Path) -> None:
    async with opened(root) as store:
        await fill(store)
    lose(root)
    async with opened(root) as store:
        async with rescanning(store):
            await asyncio.sleep(0)
        assert recovers(store)
    async with opened(root) as store, rescanning(store):
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "rescan")
        await asyncio.wait([task], timeout=5)
        assert not recovers(store)
        assert await complete(store)


async def test_a_verification_does_what_a_rescan_would(root: Path) -> None:
    async with opened(root) as store:
        await fill(store)
    lose(root)
    async with opened(root) as store:
        await store.verify()
        assert not recovers(store)
        assert await complete(store)


def take_the_writers_lock(path: Path) -> None:
    """Raise OperationalError if anybody else has it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
    connection.close()


async def test_a_backup_is_of_one_moment_and_never_locks_the_writer_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touches, "FLUSH_SECONDS", 600.0)  # nobody writes but who is awaited here
    async with opened(root) as store:
        names = [Digest.of(f"{number}".encode()) for number in range(BLOBS)]
        record = partial(store.catalog.store_blob, size=1, parsed=None, public=False, membership=(ALPINE, Proof.HEAD))
        await asyncio.gather(*map(record, names))
        seen: list[BackupProgress] = []
        copying = asyncio.create_task(store.back_up(root / "copy.sqlite", seen.append))
        writes = 0
        while not copying.done():
            await store.catalog.prove(ALPINE, Digest.of(f"new {writes}".encode()), Proof.HEAD)
            await asyncio.to_thread(take_the_writers_lock, root / CATALOG)
            writes += 1
        made = await copying
    connection = sqlite3.connect(made.path)
    rows, found = connection.execute("SELECT count(*), (SELECT count(*) FROM blob) FROM membership").fetchone()
    connection.close()
    assert found == BLOBS
    assert BLOBS <= rows <= BLOBS + writes
    steps = [progress.done for progress in seen]
    assert steps == sorted(steps), "it began again when the catalog was written"
    assert min(len(steps), writes) > 2
    assert (made.size, seen[-1].done) == (made.path.stat().st_size, made.size)


async def test_a_copy_of_a_damaged_catalog_does_not_replace_the_good_one(root: Path) -> None:
    async with opened(root) as store:
        await fill(store)
        await store.back_up()
        good = store.backup_path.read_bytes()
        await store.catalog.read(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        damage(root)
        with pytest.raises(CatalogError):
            await store.back_up()
        assert store.backup_path.read_bytes() == good
        assert not store.backup_path.with_name(f"{store.backup_path.name}.unfinished").exists()


async def test_backups_are_made_in_time_and_go_on_after_a_failure(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(root) as store:
        tries: asyncio.Queue[int] = asyncio.Queue()
        count = 0

        async def sometimes() -> Backup:
            nonlocal count
            count += 1
            tries.put_nowait(count)
            if count == 1:
                raise OSError(28, "No space left on device")
            return await store.back_up()

        async with asyncio.timeout(30), backing_up(store.backup_path, sometimes, every=0.02, settle=0.0):
            while await tries.get() < 3:
                continue
        assert store.backup_path.exists()
        assert "free some space" in caplog.text
