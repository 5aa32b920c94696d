"""One spool: written, read, synced, published, closed under those who use it."""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from pathlib import Path

import pytest

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.disk import Disk
from proxy.store.errors import StoreClosed
from proxy.store.files import Files
from proxy.store.record import StateRecord
from proxy.store.spool import Spool

DIGEST = Digest.of(b"blob")
REPOSITORY = Repository("docker.io", "library/alpine")


class Recording(Disk):
    """Notes the order of syncs."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fdatasync(self, fd: int) -> None:
        self.calls.append("data")
        super().fdatasync(fd)

    def sync_map(self, fd: int, mapping: mmap.mmap) -> None:
        self.calls.append("record")
        super().sync_map(fd, mapping)

    def fsync_folder(self, path: Path) -> None:
        self.calls.append(path.name)
        super().fsync_folder(path)


def make(tmp_path: Path, disk: Disk | None = None) -> Spool:
    files = Files(tmp_path / "data", disk or Disk())
    files.prepare()
    return files.create_spool(DIGEST, 3, None, REPOSITORY)


def test_bytes_written_out_of_order_count_once_the_gap_closes(tmp_path: Path) -> None:
    spool = make(tmp_path)
    spool.write(4, b"5678")
    assert spool.contiguous == 0
    spool.write(0, b"1234")
    assert spool.contiguous == 8
    assert spool.read(2, 4) == b"3456"
    assert spool.read(6, 100) == b"78"


def test_a_checkpoint_syncs_the_bytes_before_it_says_so(tmp_path: Path) -> None:
    disk = Recording()
    spool = make(tmp_path, disk)
    disk.calls.clear()
    spool.write(0, b"12345")
    spool.checkpoint()
    assert disk.calls == ["data", "record", "ingest"]
    spool.checkpoint()
    assert disk.calls == ["data", "record", "ingest", "data", "record"]
    record = StateRecord.open(Disk(), Path(f"{spool.path}.state"), DIGEST, 3, disk.boot_id())
    assert record is not None
    assert record.durable() == 5


def test_others_see_the_watermark_and_the_verdict(tmp_path: Path) -> None:
    spool = make(tmp_path)
    spool.size = 9
    spool.write(0, b"12345")
    spool.publish(4, "corrupt")
    record = StateRecord.open(Disk(), Path(f"{spool.path}.state"), DIGEST, 3, Disk().boot_id())
    assert record is not None
    progress = record.progress()
    assert progress is not None
    assert (progress.size, progress.contiguous, progress.releasable, progress.verdict) == (9, 5, 4, "corrupt")


def test_a_duplicate_outlives_the_spool(tmp_path: Path) -> None:
    spool = make(tmp_path)
    spool.write(0, b"12345")
    fd = spool.dup()
    spool.close()
    assert os.pread(fd, 10, 0) == b"12345"
    os.close(fd)
    for call in (lambda: spool.read(0, 1), lambda: spool.write(0, b"x"), spool.dup, spool.checkpoint):
        with pytest.raises(StoreClosed):
            call()
    spool.publish(1, "died")


async def test_closing_waits_for_the_thread_inside_so_that_no_number_is_reused_under_it(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Disk):
        def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
            if bytes(data) == b"slow":
                entered.set()
                assert leave.wait(5)
            super().pwrite(fd, data, offset)

    spool = make(tmp_path, Slow())
    number = spool.fd
    job = asyncio.create_task(asyncio.to_thread(spool.write, 0, b"slow"))
    assert await asyncio.to_thread(entered.wait, 5)
    spool.close()
    fresh = os.open("/dev/null", os.O_RDONLY)
    assert fresh != number
    leave.set()
    await job
    os.close(fresh)
    assert spool.path.read_bytes() == b"slow"
    assert spool.fd == -1
