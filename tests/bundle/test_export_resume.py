"""Exports that end early, stores that are damaged, volumes that are lost: what is written is right, or is not."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from entrepot.beside import until
from proxy.oci.digest import Digest
from proxy.regions.scope import Scope
from sync.bundle import exporting, outflow
from sync.bundle.archive import Archive
from sync.bundle.errors import BundleError, Interrupted, Refused
from sync.bundle.journal import Journal
from sync.bundle.keys import PrivateKey, Trust, TrustedKey
from sync.bundle.outflow import Outflow
from sync.bundle.target import Target, release_lock, require_room, take_lock
from tests.bundle.exporting import Home, checked
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream

APP = "library/app"
SPLIT = 60_000
STEP = 16 << 10
BUFFER = 4 << 10


class Cut(OSError):
    """The export ends here."""


class Cutter:
    """Counts the steps of an export, ends it at one of them, and counts the bytes that it writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = -1
        self.steps = 0
        self.written = 0
        monkeypatch.setattr(outflow, "BUFFER", BUFFER)
        for owner, name in (
            (Journal, "reached"),
            (Journal, "end"),
            (Archive, "keep"),
            (exporting, "give_name"),
            (exporting, "write_sums"),
        ):
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name)))
        store = Outflow._store

        def counting(out: Any, view: memoryview) -> None:
            self.written += len(view)
            store(out, view)

        monkeypatch.setattr(Outflow, "_store", counting)

    def begin(self, at: int = -1) -> None:
        self.at, self.steps, self.written = at, 0, 0

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            self.steps += 1
            if self.steps == self.at:
                raise Cut("cut here")
            return function(*args, **named)

        return counted


@pytest_asyncio.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    async with FakeUpstream() as upstream:
        image(1).publish(upstream, APP, "1")
        yield Home(tmp_path, upstream)


def image(number: int) -> Image:
    return make_image([blob(9000, seed=1), blob(130_000, seed=100 + number)])


def volumes(home: Home, name: str) -> list[bytes]:
    return [path.read_bytes() for path in Target(home.folder / f"{name}.tar", True).volumes()]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
async def test_an_export_cut_anywhere_goes_on_and_repeats_little(
    home: Home, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutter = Cutter(monkeypatch)
    await home.export("app:1", split=SPLIT, step=STEP, name="whole.tar")
    steps, whole, reference = cutter.steps, cutter.written, volumes(home, "whole")
    assert steps > 12
    assert len(reference) == 3
    for step in range(1, steps + 1, every):
        name = f"cut{step}"
        cutter.begin(step)
        with pytest.raises(Cut):
            await home.export("app:1", split=SPLIT, step=STEP, name=f"{name}.tar")
        first = cutter.written
        cutter.begin()
        home.notes.clear()
        await home.export("app:1", split=SPLIT, step=STEP, name=f"{name}.tar")
        assert home.notes == ["going on with an export that ended early"]
        assert volumes(home, name) == reference
        assert first + cutter.written <= whole + 2 * STEP + (outflow.BUFFERS + 1) * BUFFER
        assert not [left for left in home.left() if "partial" in left]


async def test_another_request_begins_anew_and_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    cutter = Cutter(monkeypatch)
    image(2).publish(home.upstream, APP, "2")
    cutter.begin(2)
    with pytest.raises(Cut):
        await home.export("app:1", split=SPLIT, step=STEP)
    assert "site.export.partial" in home.left()
    cutter.begin()
    await home.export("app:2")
    assert any("anew" in note for note in home.notes)
    assert home.left() == ["site.sha256", "site.tar"]
    assert checked(home.folder / "site.tar").sealed.plan.images[0].digest == str(image(2).digest)


async def test_a_volume_that_changed_after_the_cut_is_written_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    cutter = Cutter(monkeypatch)
    cutter.begin(4)
    with pytest.raises(Cut):
        await home.export("app:1", step=STEP)
    (partial,) = home.folder.glob("*.tar.partial")
    with partial.open("r+b") as file:
        file.seek(20_000)
        file.write(b"spoilt")
    cutter.begin()
    await home.export("app:1", step=STEP)
    checked(home.folder / "site.tar")


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(b"short")


@pytest.mark.parametrize(("damage", "split"), [(spoil, None), (spoil, SPLIT), (Path.unlink, SPLIT), (shorten, None)])
async def test_a_blob_that_is_wrong_in_the_store_is_never_exported(
    home: Home, split: int | None, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Cutter(monkeypatch)
    wrong = Digest.of(image(1).blobs[2])
    await home.export("app:1", name="before.tar", split=split)
    damage(home.file(wrong))
    home.offline = True
    with pytest.raises(BundleError, match=f"{wrong}.*cannot be had again"):
        await home.export("app:1", split=split, step=STEP)
    assert Target(home.folder / "site.tar", split is not None).volumes() == []
    home.offline = False
    await home.export("app:1", split=split, step=STEP)
    assert volumes(home, "site") == volumes(home, "before")
    assert not [left for left in home.left() if "partial" in left]


async def test_a_manifest_that_is_wrong_in_the_store_is_fetched_again(home: Home) -> None:
    await home.export("app:1", name="before.tar")
    spoil(home.file(image(1).digest))
    (home.folder / "before.tar").rename(home.folder / "lost.tar")
    await home.export(name="before.tar", recut=(1,))
    assert volumes(home, "before") == volumes(home, "lost")


@pytest.mark.parametrize("beside", [True, False], ids=["from another volume", "from the archive"])
async def test_a_lost_volume_is_cut_again_as_it_was(home: Home, tmp_path: Path, beside: bool) -> None:
    PrivateKey.new().save(tmp_path / "key.pem")
    await home.export("app:1", split=SPLIT, key=tmp_path / "key.pem")
    paths = Target(home.folder / "site.tar", True).volumes()
    before = [path.read_bytes() for path in paths]
    image(2).publish(home.upstream, APP, "1")  # the tag has moved on
    for path in paths if not beside else paths[1:2]:
        path.unlink()
    home.file(Digest.of(image(1).blobs[2])).unlink()
    report = await home.export(recut=(2,))
    assert [Path(volume.file) for volume in report.volumes] == [paths[1]]
    assert paths[1].read_bytes() == before[1]


async def test_a_volume_cut_again_must_have_the_hash_that_was_noted(home: Home) -> None:
    await home.export("app:1")
    (home.folder / "site.tar").unlink()
    (home.folder / "site.sha256").write_text(f"{'0' * 64}  site.tar\n")
    with pytest.raises(BundleError, match=r"site\.sha256 says 0000"):
        await home.export(recut=(1,))
    assert home.left() == ["site.sha256"]
    with pytest.raises(BundleError, match="no volume 2"):
        await home.export(recut=(2,))


async def test_a_disk_that_fills_up_is_named_and_the_export_goes_on_later(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outflow, "BUFFER", BUFFER)
    pwrite = os.pwrite

    def full(file: int, data: memoryview, at: int) -> int:
        if at >= 2 * STEP:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space") as caught:
        await home.export("app:1", step=STEP)
    assert caught.value.filename == str(home.folder / "site.tar.partial")
    assert home.left() == ["site.export.partial", "site.tar.partial"]
    monkeypatch.setattr(os, "pwrite", pwrite)
    await home.export("app:1", step=STEP)
    assert home.notes == ["going on with an export that ended early"]
    checked(home.folder / "site.tar")


async def test_two_exports_at_once_do_not_write_one_bundle(home: Home) -> None:
    both = await asyncio.gather(home.export("app:1"), home.export("app:1", split=SPLIT), return_exceptions=True)
    assert [type(one) for one in both].count(Refused) == 1
    assert any("under way" in str(one) for one in both)
    assert not [left for left in home.left() if "export" in left]


async def test_a_lock_goes_with_its_export_and_a_dry_run_needs_none(home: Home) -> None:
    target = Target(home.folder / "site.tar", split=False)
    lock = take_lock(target)
    for asked in ({}, {"split": SPLIT}, {"recut": (1,)}):
        with pytest.raises(Refused, match="under way"):
            await home.export("app:1", **asked)
    assert (await home.export("app:1", dry_run=True)).images == 1
    os.close(lock)  # as the end of a process does, which leaves the file
    await home.export("app:1")
    assert home.left() == ["site.sha256", "site.tar"]


def test_a_lock_that_was_removed_while_it_was_taken_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path / "site.tar", split=False)
    flock, first = fcntl.flock, take_lock(target)

    def late(file: int, how: int) -> None:
        monkeypatch.undo()
        release_lock(target, first)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = take_lock(target)
    with pytest.raises(Refused, match="under way"):
        take_lock(target)
    release_lock(target, second)
    assert list(tmp_path.iterdir()) == []


async def test_a_signed_bundle_is_what_its_key_signed(home: Home, tmp_path: Path) -> None:
    key = PrivateKey.new()
    key.save(tmp_path / "key.pem")
    report = await home.export("app:1", key=tmp_path / "key.pem")
    volume = checked(home.folder / "site.tar")
    trust = Trust([TrustedKey("home", key.public, Scope.of(["*"]))], required=True)
    assert trust.judge(volume.sealed, volume.signature).key == "home"
    assert report.signed_by == key.public.id


async def test_what_is_exported_is_held_from_eviction_meanwhile_and_no_longer(home: Home) -> None:
    def held() -> set[str]:
        with sqlite3.connect(home.folder / "data" / "catalog.sqlite") as catalog:
            return {digest for (digest,) in catalog.execute("SELECT digest FROM hold")}

    seen: list[set[str]] = []
    await home.export("app:1", told=lambda event: seen.append(held()))
    assert {str(image(1).digest), *(str(Digest.of(data)) for data in image(1).blobs)} in seen
    assert held() == set()


async def test_room_is_asked_for_before_a_byte_is_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def full(folder: Path, needed: int) -> None:
        asked.append(needed)
        require_room(folder, 1 << 62)

    monkeypatch.setattr(exporting, "require_room", full)
    with pytest.raises(Refused, match=r"not enough room: \d+ bytes"):
        await home.export("app:1")
    assert home.left() == []
    monkeypatch.undo()
    await home.export("app:1")
    assert asked == [(home.folder / "site.tar").stat().st_size]


def test_a_fat_disk_needs_volumes_and_a_bundle_needs_a_folder(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    stick = tmp_path / "my stick"
    stick.mkdir()
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {str(stick).replace(' ', chr(92) + '040')} vfat rw 0 0\n")
    with pytest.raises(Refused, match="--split-size 4GiB"):
        Target(stick / "site.tar", False).check(None, mounts)
    Target(stick / "site.tar", True).check(4 << 30, mounts)
    Target(tmp_path / "site.tar", False).check(None, mounts)
    for path in (tmp_path / "gone" / "site.tar", tmp_path / "site", stick):
        with pytest.raises(Refused, match=r"no folder|does not end in \.tar"):
            Target(path, False).check(None, mounts)


async def test_an_export_ends_with_the_mirror_beside_which_it_runs() -> None:
    ended = asyncio.Event()
    stopped = asyncio.Event()

    async def work() -> None:
        ended.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with pytest.raises(Interrupted, match="same command again"):
        await until(ended, work())
    assert stopped.is_set()
