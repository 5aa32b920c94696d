"""What goes wrong with disks: a bit turns, volumes are cut, lost, copied twice or come one by one, the site is full."""

from __future__ import annotations

import os
import random
import re
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.bundles import Site, flip
from tests.support.contents import blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream
from tests.support.volumes import tmpfs

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1 << 20
REPO = "library/damage"
ROOM = 48 * MIB
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Sent:
    """A bundle of four volumes, one layer cut by all of them, and the tags that it brings."""

    volumes: list[Path]
    wanted: dict[str, str]

    def copied(self, folder: Path) -> list[Path]:
        folder.mkdir(exist_ok=True)
        return [Path(shutil.copy(volume, folder)) for volume in self.volumes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sent]:
    folder = tmp_path_factory.mktemp("damage")
    parts = {"linux/amd64": make_image([blob(7 * MIB, 1), blob(500, 2)]), "linux/arm64": make_image([blob(70_000, 3)])}
    images = {f"{REPO}:1": make_index(parts), f"{REPO}:2": make_image([blob(500, 2), blob(90_000, 4)])}
    async with FakeUpstream() as upstream:
        for tag, image in images.items():
            image.publish(upstream, REPO, tag.rpartition(":")[2])
        home = Site(folder, "home", upstream.url)
        references = [f"docker.io/{tag}" for tag in images]
        await home.runs("export", "-o", str(folder / "site.tar"), "--split-size", "2MiB", *references)
    volumes = sorted(folder.glob("site.*.tar"))
    assert len(volumes) == 4
    yield Sent(volumes, {tag: str(image.digest) for tag, image in images.items()})


def blob_at(volume: Path, offset: int) -> str | None:
    """Return in hexadecimal the digest of the blob to which a byte of a volume belongs."""
    with tarfile.open(volume) as tar:
        for entry in tar:
            if entry.offset_data <= offset < entry.offset_data + entry.size:
                found = _HEX.search(entry.name)
                return found[0] if found else None
    return None


async def turned(sent: Sent, tmp_path: Path, chance: random.Random, count: int) -> None:
    for number in range(count):
        volumes = sent.copied(tmp_path / f"disk{number}")
        which = chance.randrange(len(volumes))
        volume = volumes[which]
        offset, bit = chance.randrange(volume.stat().st_size), chance.randrange(8)
        flip(volume, offset, bit)
        site = Site(tmp_path, f"site{number}")
        told = await site.refuses("import", str(tmp_path / f"disk{number}"))
        where = f"bit {bit} of byte {offset} of {volume.name}: {told}"
        assert volume.name in told, where
        damaged = blob_at(sent.volumes[which], offset)
        assert damaged is None or damaged in told, where
        assert site.shown() == {}, where


async def test_one_turned_bit_is_named_by_volume_and_blob_and_nothing_is_shown(sent: Sent, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    await turned(sent, tmp_path, random.Random(seed), 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_turned_bit_anywhere_is_named_by_volume_and_blob(sent: Sent, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    await turned(sent, tmp_path, random.Random(seed), 60)


@pytest.mark.slow
async def test_volumes_come_one_at_a_time_in_any_order_by_the_same_path(sent: Sent, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    site = Site(tmp_path, "site")
    order = random.sample(sent.volumes, len(sent.volumes))
    print([volume.name for volume in order])
    for number, volume in enumerate(order, 1):
        shutil.rmtree(drive, ignore_errors=True)
        drive.mkdir()
        shutil.copy(volume, drive)
        last = number == len(order)
        done = site.entrepot("import", str(drive), codes=(0,) if last else (3,))
        if not last:
            missing = sorted(int(one.suffixes[0][1:]) for one in order[number:])
            said = done.stdout + done.stderr
            assert all(str(one) in said for one in missing), said
            assert site.shown() == {}
    assert site.shown() == sent.wanted
    assert site.leftovers() == []
    async with site.serving():
        await site.pulls(sent.wanted)


@pytest.mark.slow
async def test_a_volume_that_is_missing_is_named_and_what_came_is_not_read_again(sent: Sent, tmp_path: Path) -> None:
    site = Site(tmp_path, "site")
    most = [str(volume) for volume in (*sent.volumes[:2], *sent.volumes[3:])]
    done = site.entrepot("import", *most, codes=(3,))
    assert "3" in done.stdout + done.stderr
    assert site.shown() == {}
    site.entrepot("import", str(sent.volumes[2]))
    assert site.shown() == sent.wanted


@pytest.mark.slow
async def test_a_volume_that_ends_early_is_named(sent: Sent, tmp_path: Path) -> None:
    for number, keep in enumerate((0.0, 0.3, 0.9, 1.0)):
        volumes = sent.copied(tmp_path / f"disk{number}")
        size = volumes[1].stat().st_size
        os.truncate(volumes[1], min(int(size * keep), size - 1))
        site = Site(tmp_path, f"site{number}")
        assert volumes[1].name in await site.refuses("import", *map(str, volumes))
        assert site.shown() == {}


@pytest.mark.slow
async def test_a_volume_that_lies_there_twice_does_no_harm(sent: Sent, tmp_path: Path) -> None:
    volumes = sent.copied(tmp_path / "disk")
    shutil.copy(volumes[1], tmp_path / "disk" / "copy of site.002.tar")
    site = Site(tmp_path, "site")
    await site.runs("import", str(tmp_path / "disk"))
    assert site.shown() == sent.wanted


def filled(folder: Path) -> Path:
    """Take all room of a volume, as a program would that does not ask us."""
    file = folder / "somebody"
    with file.open("wb") as out, suppress(OSError):
        while True:
            os.write(out.fileno(), bytes(4096))
    return file


@pytest.mark.slow
@pytest.mark.needs("root", "mount")
async def test_a_site_without_room_says_so_before_it_writes(sent: Sent, tmp_path: Path) -> None:
    site = Site(tmp_path, "site")
    with tmpfs(site.data, 6 * MIB):
        told = await site.refuses("import", *map(str, sent.volumes))
        assert re.search(r"needs \d+ .* room|room: .* needs \d+", told)
        files, rows = site.state()
        assert not files
        assert not [row for row in rows if "sha256" in row]


@pytest.mark.slow
@pytest.mark.needs("root", "mount")
async def test_a_disk_that_fills_up_in_mid_import_leaves_the_store_whole_and_the_rerun_goes_on(tmp_path: Path) -> None:
    image = make_image([blob(10 * MIB, seed) for seed in (11, 12, 13)])
    async with FakeUpstream() as upstream:
        image.publish(upstream, REPO, "full")
        home, bundle = Site(tmp_path, "home", upstream.url), tmp_path / "site.tar"
        await home.runs("export", "-o", str(bundle), f"docker.io/{REPO}:full")
    site = Site(tmp_path, "site")
    with tmpfs(site.data, ROOM):
        command = site.begin("import", bundle)
        assert command.paused_after(6 * MIB)
        somebody = filled(site.data)
        command.go_on()
        assert command.wait() == 1
        assert re.search("space|room|full", command.tail()), command.tail()
        assert site.shown() == {}
        somebody.unlink()
        await site.runs("verify")
        await site.runs("import", str(bundle))
        assert site.shown() == {f"{REPO}:full": str(image.digest)}
        assert site.leftovers() == []
