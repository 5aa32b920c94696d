"""kill -9 of either region at random points of a sync, and the rate of a link."""

from __future__ import annotations

import asyncio
import random
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from tests.scenarios.fleets import pull
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.regions import Region, regions, shows

MIB = 1 << 20
RATE = 12 * MIB
SIZES = (3000, 600_000, 2 * MIB)
ONE_ROUND = sum(SIZES)
CHUNK = MIB
RECORDS = 64 * 1024
"""What questions, records and manifests cost at most between two kills."""
HALF_SERVABLE = """
    SELECT path || ':' || name FROM tag JOIN repository ON repository.id = tag.repository
    LEFT JOIN blob ON blob.digest = tag.digest
    WHERE tag.digest IS NOT NULL AND (blob.present IS NOT 1 OR blob.missing > 0)
"""
_numbers = count(80_000)


class Checker:
    """A client of every tag that a region shows, from the first to the last moment; no look may find one incomplete."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.looks = self.pulls = 0
        self.wrong: list[str] = []

    async def run(self) -> None:
        while True:
            self.wrong += [tag for (tag,) in await asyncio.to_thread(self._region.read, HALF_SERVABLE)]
            shown = [tag for tag, digest in (await asyncio.to_thread(self._region.tags)).items() if digest]
            self.looks += 1
            for tag in random.sample(shown, min(2, len(shown))):
                await self._pull(tag)
            await asyncio.sleep(0.05)

    async def _pull(self, tag: str) -> None:
        repo, _, name = tag.rpartition(":")
        try:
            statuses = await pull(self._region, repo, name)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # killed meanwhile
        self.pulls += 1
        if set(statuses) != {200}:
            self.wrong.append(f"{tag}: {statuses}")


async def killed(tmp_path: Path, rounds: int, seed: int) -> None:
    """Kill one of two regions in each of so many rounds, at a random byte of what the round brings."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    brought: dict[str, Image] = {}
    async with (
        FakeUpstream() as upstream,
        regions(tmp_path, {"a": upstream.url, "b": None}, {"b": ["a"]}) as world,
        asyncio.TaskGroup() as group,
    ):
        a, b, link = world["a"], world["b"], world.link("b", "a")
        link.rate = RATE
        checker = Checker(b)
        checking = group.create_task(checker.run())
        for number in range(rounds):
            repo = f"library/kill{number}"
            image = make_image([blob(size, seed=next(_numbers)) for size in SIZES])
            image.publish(upstream, repo, "1")
            point = link.down.bytes + chance.randrange(ONE_ROUND)
            assert set(await pull(a, repo, "1")) == {200}
            brought[f"{repo}:1"] = image
            await link.wait_down(point)
            victim = chance.choice([a, b])
            await asyncio.to_thread(victim.kill)
            await world.start(victim.name)
        for tag, image in brought.items():
            await shows(b, tag, image.digest)
        checking.cancel()
    assert not checker.wrong
    assert checker.looks > rounds
    assert checker.pulls
    assert link.down.bytes <= rounds * (ONE_ROUND + CHUNK + RECORDS)


async def test_regions_killed_at_random_points_end_alike_and_fetch_nothing_again(tmp_path: Path) -> None:
    """kill -9 of either side at random points: converges, nothing is fetched twice but the last incomplete chunk, no
    tag ever points to something incomplete."""
    await killed(tmp_path, 5, random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_regions_killed_many_times_end_alike_and_fetch_nothing_again(tmp_path: Path) -> None:
    await killed(tmp_path, 50, random.randrange(1 << 30))


@pytest.mark.slow
async def test_a_link_that_is_cut_again_and_again_costs_only_what_was_under_way(tmp_path: Path) -> None:
    """A connection that breaks is resumed by Range."""
    async with FakeUpstream() as upstream, regions(tmp_path, {"a": upstream.url, "b": None}, {"b": ["a"]}) as world:
        link = world.link("b", "a")
        link.rate = RATE
        image = make_image([blob(8 * MIB, seed=next(_numbers))])
        image.publish(upstream, "library/cut", "1")
        before = link.down.bytes
        link.cut_after(3 * MIB)
        assert set(await pull(world["a"], "library/cut", "1")) == {200}
        await shows(world["b"], "library/cut:1", image.digest)
        assert link.down.bytes - before <= 8 * MIB + CHUNK + RECORDS


@pytest.mark.slow
async def test_the_budget_of_a_link_holds(tmp_path: Path) -> None:
    """The budget holds within ±10 % on the real clock."""
    settings = {"bandwidth": "2MiB/s"}
    async with (
        FakeUpstream() as upstream,
        regions(tmp_path, {"a": upstream.url, "b": None}, {"b": ["a"]}, peer_settings=settings) as world,
    ):
        a, b = world["a"], world["b"]
        await asyncio.to_thread(b.entrepot, "sync", "pause")
        digests = {}
        for number in range(6):
            image = make_image([blob(8 * MIB, seed=next(_numbers))])
            digests[f"library/budget{number}:1"] = image.publish(upstream, f"library/budget{number}", "1")
            assert set(await pull(a, f"library/budget{number}", "1")) == {200}
        now = asyncio.get_running_loop().time
        begun = now()
        await asyncio.to_thread(b.entrepot, "sync", "resume")
        for tag, digest in digests.items():
            await shows(b, tag, digest)
        assert 1.8 * MIB <= 48 * MIB / (now() - begun) <= 2.2 * MIB
