"""Small blobs that are stored together: all of them, durably, with few syncs; what fails is carried to its end."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from proxy.oci.digest import Digest
from proxy.store.disk import Disk
from proxy.store.errors import NoRoom, TooLarge
from proxy.store.evict import Watermarks
from proxy.store.records import Proof, Verified
from proxy.store.store import Store
from proxy.store.together import Together
from tests.store.contents import ALPINE
from tests.store.test_store import image, leftovers

MANIFEST, PARSED = image(b"a layer")
BODIES = [os.urandom(500 + number) for number in range(3)]
BLOBS = [*(Verified(Digest.of(body), body, ALPINE) for body in BODIES)]
BLOBS.append(Verified(Digest.of(MANIFEST), MANIFEST, ALPINE, PARSED))


class Failing(Disk):
    """Refuses all calls from the n-th on until it is mended, and counts what syncs."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.calls = 0
        self.folders: list[str] = []

    def _step(self) -> None:
        self.calls += 1
        if self.calls > self.left:
            raise OSError(28, "No space left on device")

    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._step()
        super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._step()
        super().fdatasync(fd)

    def sync_map(self, fd: int, mapping: mmap.mmap) -> None:
        self._step()
        super().sync_map(fd, mapping)

    def fsync_folder(self, path: Path) -> None:
        self._step()
        self.folders.append(path.name)
        super().fsync_folder(path)

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        super().rename(old, new)


async def test_all_are_stored_and_proven(store: Store, root: Path) -> None:
    await store.put_all(BLOBS, Proof.IMPORTED, public=False)
    for blob in BLOBS:
        assert await store.read_blob(blob.digest, 1 << 20) == blob.body
        assert await store.catalog.has_membership(ALPINE, blob.digest)
        record = await store.catalog.blob(blob.digest)
        assert record is not None
        assert (record.public, record.media_type) == (False, blob.parsed.media_type if blob.parsed else None)
    assert leftovers(root) == []
    assert await store.catalog.intents() == []


async def test_folders_are_synced_once_for_all(root: Path) -> None:
    disk = Failing(1 << 30)
    store = await Store.open(root, disk=disk)
    disk.folders.clear()
    await store.put_all(BLOBS, Proof.IMPORTED, public=False)
    await store.close()
    assert disk.folders.count("ingest") == 2
    assert disk.folders.count("sha256") == 1
    assert len(disk.folders) == 3 + len({blob.digest.hex[:2] for blob in BLOBS})


@pytest.mark.parametrize("then", ["in the same run", "after a start"])
async def test_a_disk_that_refuses_anywhere_leaves_what_can_be_stored_again(tmp_path: Path, then: str) -> None:
    step, failed = 0, True
    while failed:
        disk = Failing(1 << 30)
        root = tmp_path / str(step)
        store = await Store.open(root, disk=disk)
        disk.calls, disk.left = 0, step
        try:
            await store.put_all(BLOBS, Proof.IMPORTED, public=False)
            failed = False
        except OSError:
            disk.left = 1 << 30
        if then == "after a start":
            await store.close()
            store = await Store.open(root)
        for blob in BLOBS:
            assert await store.resume(blob.digest) is None
        assert leftovers(root) == []
        assert await store.catalog.intents() == []
        rest = [blob for blob in BLOBS if await store.catalog.blob(blob.digest) is None]
        assert len(rest) in (0, len(BLOBS))
        report = await store.verify()
        assert (report.corrupt, report.missing, report.unknown) == ([], [], [])
        await store.close()
        step += 2
    assert step > 20


async def test_what_has_no_room_together_is_refused_whole(store: Store, root: Path) -> None:
    with pytest.raises(NoRoom, match="of 1500 are taken"):
        await store.catalog.add_intents(BLOBS, 1500)
    assert await store.catalog.intents() == []
    store.space.marks = Watermarks(low=1000, high=1500)
    with pytest.raises(TooLarge):
        await store.put_all(BLOBS, Proof.IMPORTED, public=False)
    assert leftovers(root) == []
    assert await store.catalog.intents() == []


async def test_what_a_kill_after_the_transaction_left_is_removed_beside_attempts_that_run(
    store: Store, root: Path
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Together, "remove", lambda together: None)
        await store.put_all(BLOBS, Proof.IMPORTED, public=False)
    assert len(leftovers(root)) == len(BLOBS)
    spool = await store.begin(Digest.of(b"running"), 7, ALPINE)
    claim = await store.claim(spool.digest)
    assert claim is not None
    assert await store.remove_strays() == len(BLOBS)
    assert len(leftovers(root)) == 3  # the spool, its record, the claim
    await store.release(claim)
