"""The state record: what is believed after a kill, a torn write, a power loss."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st

from proxy.oci.digest import Digest
from proxy.store.disk import Disk
from proxy.store.extents import Extents
from proxy.store.record import MAX_EXTENTS, StateRecord

DIGEST = Digest.of(b"blob")
LONG = Digest.of(b"blob", "sha512")
BOOT = str(UUID(int=1))
OTHER_BOOT = str(UUID(int=2))


class NeverSyncs(Disk):
    """What is mapped is seen by whoever reads the file, synced or not."""

    def sync_map(self, fd: int, mapping: mmap.mmap) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.state"


@pytest.fixture
def record(path: Path) -> Iterator[StateRecord]:
    record = StateRecord.create(Disk(), path, DIGEST, 7, BOOT)
    yield record
    record.close()


def reopen(path: Path, *, boot: str = BOOT, digest: Digest = DIGEST, generation: int = 7) -> StateRecord:
    record = StateRecord.open(Disk(), path, digest, generation, boot)
    assert record is not None
    return record


def test_what_was_published_is_read_back(record: StateRecord, path: Path) -> None:
    extents = Extents([(0, 100), (200, 300)])
    record.publish(5000, 60, "running", 12.5, extents)
    progress = reopen(path).progress()
    assert progress is not None
    assert (progress.size, progress.contiguous, progress.releasable) == (5000, 100, 60)
    assert (progress.verdict, progress.heartbeat, progress.boot) == ("running", 12.5, BOOT)
    assert progress.extents == extents


def test_an_unknown_size_stays_unknown(record: StateRecord) -> None:
    record.publish(None, 0, "died", 0.0, Extents())
    progress = record.progress()
    assert progress is not None
    assert progress.size is None
    assert progress.verdict == "died"


def test_in_the_same_boot_all_that_was_written_is_trusted(record: StateRecord, path: Path) -> None:
    record.publish(None, 0, "running", 0.0, Extents([(0, 40)]))
    record.mark_durable(40)
    record.publish(None, 0, "running", 0.0, Extents([(0, 90)]))
    assert reopen(path).trusted() == 90


def test_after_another_boot_only_synced_bytes_are_trusted(record: StateRecord, path: Path) -> None:
    record.publish(None, 0, "running", 0.0, Extents([(0, 40)]))
    record.mark_durable(40)
    record.publish(None, 0, "running", 0.0, Extents([(0, 90)]))
    assert reopen(path, boot=OTHER_BOOT).trusted() == 40


def test_more_spans_than_fit_claim_less_and_never_more(record: StateRecord) -> None:
    extents = Extents([(10 * index, 10 * index + 5) for index in range(MAX_EXTENTS + 9)])
    record.publish(None, 0, "running", 0.0, extents)
    progress = record.progress()
    assert progress is not None
    assert list(progress.extents) == list(extents)[:MAX_EXTENTS]


@pytest.mark.parametrize(("digest", "generation"), [(DIGEST, 8), (Digest.of(b"other"), 7), (LONG, 7)])
def test_the_record_of_another_spool_is_refused(
    record: StateRecord, path: Path, digest: Digest, generation: int
) -> None:
    assert StateRecord.open(Disk(), path, digest, generation, BOOT) is None


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "short": b"ENTSPOOL", "zeros": bytes(4096), "noise": b"\xff" * 4096}.items():
        (tmp_path / name).write_bytes(content)
        assert StateRecord.open(Disk(), tmp_path / name, DIGEST, 7, BOOT) is None
    assert StateRecord.open(Disk(), tmp_path / "absent", DIGEST, 7, BOOT) is None


def test_sha512_fits(tmp_path: Path) -> None:
    StateRecord.create(Disk(), tmp_path / "long", LONG, 1, BOOT).close()
    assert StateRecord.open(Disk(), tmp_path / "long", LONG, 1, BOOT) is not None


def test_a_note_is_read_back_only_whole(record: StateRecord, path: Path) -> None:
    assert record.note() is None
    note = b'{"size":1}' * 1000
    record.write_note(note)
    assert reopen(path).note() == note
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert reopen(path).note() is None


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 63), steps=st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_a_write_torn_anywhere_leaves_the_state_before_or_after_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("torn") / "state"
    record = StateRecord.create(NeverSyncs(), path, DIGEST, 7, BOOT)
    for step in steps[:-1]:
        record.publish(None, 0, "running", 0.0, Extents([(0, step)]))
        record.mark_durable(step)
    before = path.read_bytes()
    record.publish(None, 0, "running", 0.0, Extents([(0, steps[-1])]))
    record.mark_durable(steps[-1])
    after = path.read_bytes()
    record.close()
    for start, length in ((256, 64), (320, 64), (512, 1536), (2048, 1536)):
        torn = bytearray(after)
        torn[start + cut : start + length] = before[start + cut : start + length]
        path.write_bytes(torn[: len(after)])
        reopened = reopen(path)
        assert reopened.trusted() in steps[-2:]
        assert reopened.durable() in steps[-2:]
        reopened.close()
