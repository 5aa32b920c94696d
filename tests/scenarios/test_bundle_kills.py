"""kill -9 of exports and imports at random points: begun again they end as if nothing had been, and repeat little."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest

from tests.support.bundles import Command, Site, checked, closure
from tests.support.contents import Image, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

MIB = 1 << 20
REPO = "library/kill"
SPLIT = "6MiB"
CHUNK = 64 * MIB
"""How much work a kill may cost at most."""
RECORDS = 8 * MIB
"""What plans, journals and the catalog's pages come to in one run."""
_numbers = count(70_000)


def images() -> dict[str, Image]:
    """Return images of some MiB that nobody has seen, by tag: a layer that is cut by volumes among them."""
    parts = [make_image([blob(size, seed=next(_numbers)) for size in sizes]) for sizes in ((2000, 9 * MIB), (3 * MIB,))]
    return {
        f"{REPO}:big": parts[0],
        f"{REPO}:index": make_index({"linux/amd64": parts[1], "linux/arm64": make_image([blob(MIB, next(_numbers))])}),
        f"{REPO}-other:1": make_image([blob(50_000, seed=next(_numbers)), parts[0].blobs[1]]),
    }


def large(size: int) -> bytes:
    """Return bytes that nobody has seen, a MiB again and again."""
    return blob(MIB, seed=next(_numbers)) * (size // MIB)


def publish(upstream: FakeUpstream, offered: dict[str, Image]) -> dict[str, str]:
    for tag, image in offered.items():
        repository, _, name = tag.rpartition(":")
        image.publish(upstream, repository, name)
    return {tag: str(image.digest) for tag, image in offered.items()}


def references(wanted: dict[str, str]) -> list[str]:
    return [f"docker.io/{tag}" for tag in wanted]


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


async def killed(command: Command, chance: random.Random, whole: int) -> bool:
    """Kill a command at a random point of its life, which writes `whole` bytes; tell whether it had not ended."""
    share = chance.random() * 1.25
    wrote = await asyncio.to_thread(command.killed_after, int(min(share, 0.97) * whole), max(0.0, share - 0.97))
    return bool(wrote)


async def exported(tmp_path: Path, rounds: int, seed: int) -> None:
    """Kill the export in each round, of images that are first to be pulled; where it was done, begin another."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with FakeUpstream() as upstream:
        offered = images()
        wanted, parts = publish(upstream, offered), closure(offered.values())
        words = ["--split-size", SPLIT, *references(wanted)]

        def anew(number: int) -> tuple[Site, Path]:
            target = tmp_path / f"disk{number}"
            target.mkdir()
            return Site(tmp_path / f"round{number}", "home", upstream.url), target

        async def is_whole(home: Site, target: Path) -> None:
            assert await asyncio.to_thread(checked, target) == parts
            assert len(hashes(target, "site.*.tar")) > 2
            assert hashes(target).keys() == {*hashes(target, "site.*.tar"), "site.sha256"}
            assert home.leftovers() == []

        home, target = anew(0)
        whole = (await asyncio.to_thread(home.begin("export", "-o", target / "site.tar", *words).watched)).written
        await is_whole(home, target)
        home, target = anew(1)
        finished: dict[str, str] = {}
        for number in range(1, rounds + 1):
            cut = await killed(home.begin("export", "-o", target / "site.tar", *words), chance, whole)
            now = hashes(target, "site.*.tar")
            assert finished.items() <= now.items()  # what bears its name is as it will be
            finished = now
            if not cut:
                await is_whole(home, target)
                home, target = anew(number + 1)
                finished = {}
        await home.runs("export", "-o", str(target / "site.tar"), *words)
        assert finished.items() <= hashes(target).items()
        await is_whole(home, target)


async def imported(tmp_path: Path, rounds: int, seed: int, *, beside: Callable[[int], bool]) -> None:
    """Kill the import in each round, where `beside` says so that of a site whose mirror serves meanwhile."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with FakeUpstream() as upstream:
        wanted = publish(upstream, images())
        home = Site(tmp_path, "home", upstream.url)
        (tmp_path / "disk").mkdir()
        await home.runs("export", "-o", str(tmp_path / "disk" / "site.tar"), "--split-size", SPLIT, *references(wanted))
    disk = str(tmp_path / "disk")
    command = Site(tmp_path, "first").begin("import", disk)
    whole = (await asyncio.to_thread(command.watched)).written
    sites = [Site(tmp_path, "site0")]
    for number in range(1, rounds + 1):
        site = sites[-1]
        if beside(number) and not site.running:
            await asyncio.to_thread(site.start)
        cut = await killed(site.begin("import", disk), chance, whole)
        assert site.shown() in ({}, wanted)
        assert site.half_servable() == []
        if site.running and site.shown():
            await site.pulls(wanted)
        if not cut:
            assert site.shown() == wanted
            await nothing_is_left(site)
            sites.append(Site(tmp_path, f"site{number}"))
    site = sites[-1]
    await site.runs("import", disk)
    assert site.shown() == wanted
    await nothing_is_left(site)
    async with site.serving():
        await site.pulls(wanted)


async def nothing_is_left(site: Site) -> None:
    """What a process that is killed beside a mirror leaves of a fill that was over goes at the next start."""
    if site.running:
        await asyncio.to_thread(site.kill)
        async with site.serving():
            pass
    assert site.leftovers() == []


async def test_an_export_killed_at_random_points_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    await exported(tmp_path, 5, random.randrange(1 << 30))


async def test_an_import_killed_at_random_points_shows_all_or_nothing(tmp_path: Path) -> None:
    await imported(tmp_path, 5, random.randrange(1 << 30), beside=lambda number: False)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_export_killed_many_times_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    await exported(tmp_path, 50, random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_import_killed_many_times_shows_all_or_nothing(tmp_path: Path) -> None:
    await imported(tmp_path, 50, random.randrange(1 << 30), beside=lambda number: number % 20 > 10)


async def begun(tmp_path: Path, sizes: Sequence[int]) -> tuple[dict[str, str], Path]:
    """Export an image of layers of such sizes; return its tag with its digest, and the bundle."""
    async with FakeUpstream() as upstream:
        image = make_image([large(size) for size in sizes])
        wanted = publish(upstream, {f"{REPO}:1": image})
        home, bundle = Site(tmp_path, "home", upstream.url), tmp_path / "site.tar"
        await home.runs("export", "-o", str(bundle), *references(wanted))
    return wanted, bundle


@pytest.mark.slow
async def test_an_import_beside_a_mirror_ends_with_it_and_goes_on_afterwards(tmp_path: Path) -> None:
    wanted, bundle = await begun(tmp_path, [6 * MIB, 6 * MIB])
    site = Site(tmp_path, "site")
    await asyncio.to_thread(site.start)
    command = site.begin("import", bundle)
    assert await asyncio.to_thread(command.paused_after, 4 * MIB)
    await asyncio.to_thread(site.kill)
    command.go_on()
    assert await asyncio.to_thread(command.wait) == 1
    assert "again" in command.tail()
    assert site.shown() == {}
    async with site.serving():
        await site.runs("import", str(bundle))
        assert site.shown() == wanted
        await site.pulls(wanted)
    assert site.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_killed_import_repeats_one_chunk_at_most(tmp_path: Path) -> None:
    size = 320 * MIB
    wanted, bundle = await begun(tmp_path, [size])
    site = Site(tmp_path, "site")
    wrote = await asyncio.to_thread(site.begin("import", bundle).killed_after, 200 * MIB)
    assert wrote
    again = await asyncio.to_thread(site.begin("import", bundle).watched)
    assert again.written <= size - wrote + CHUNK + RECORDS
    assert site.shown() == wanted


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_killed_export_repeats_one_chunk_at_most(tmp_path: Path) -> None:
    size = 320 * MIB
    async with FakeUpstream() as upstream:
        wanted = publish(upstream, {f"{REPO}:1": make_image([large(size)])})
        home, bundle = Site(tmp_path, "home", upstream.url), tmp_path / "site.tar"
        await home.runs("pull", *references(wanted))
        words = ["export", "-o", str(bundle), *references(wanted)]
        wrote = await asyncio.to_thread(home.begin(*words).killed_after, 200 * MIB)
        assert wrote
        again = await asyncio.to_thread(home.begin(*words).watched)
    assert again.written <= size - wrote + CHUNK + RECORDS
