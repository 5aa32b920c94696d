"""Two regions with an upstream each, that see the same tags: at once, late, apart from each other, or with a clock
that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from tests.scenarios.fleets import pull
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import ask
from tests.support.regions import Region, World, regions, shows, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
KIB = 1024
DAY = 24 * 3600.0
FRESH = {"Accept": "*/*", "Cache-Control": "no-cache"}
_numbers = count(50_000)


@dataclass
class Pair:
    """The upstream of A, the alternate that is all that B sees of it, and both regions."""

    upstream: FakeUpstream
    alternate: FakeUpstream
    world: World

    def part(self) -> None:
        """Let neither region hear of the other."""
        for link in self.world.links.values():
            link.partition()

    def heal(self) -> None:
        for link in self.world.links.values():
            link.heal()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Two regions that ask their upstreams every second; a test leaves the links whole."""
    async with (
        FakeUpstream() as upstream,
        FakeUpstream() as alternate,
        regions(
            tmp_path_factory.mktemp("pair"),
            {"a": upstream.url, "b": alternate.url},
            {"a": ["b"], "b": ["a"]},
            upstream_settings={"tag_ttl": "1s"},
        ) as world,
    ):
        yield Pair(upstream, alternate, world)


def new_image() -> Image:
    return make_image([blob(20 * KIB, seed=next(_numbers))])


async def observed(region: Region, repo: str, tag: str) -> str:
    """Have a region ask its upstream for a tag now; return the digest that it serves."""
    answer = await ask(f"{region.url}/v2/{repo}/manifests/{tag}", headers=FRESH)
    assert answer.status == 200, answer.body
    return answer.headers["Docker-Content-Digest"]


async def asked_again(upstream: FakeUpstream, region: Region, repo: str, times: int) -> set[str]:
    """Be a client of a tag until its region has asked the upstream so many times more; return what was served."""
    wanted = upstream.count(contains=f"{repo}/manifests/1") + times
    served = set()
    async with asyncio.timeout(60):
        while upstream.count(contains=f"{repo}/manifests/1") < wanted:
            answer = await ask(f"{region.url}/v2/{repo}/manifests/1", headers={"Accept": "*/*"})
            served.add(answer.headers["Docker-Content-Digest"])
            await asyncio.sleep(0.1)
    return served


def conflicts(region: Region) -> str:
    """Return what the region lists of them."""
    return region.entrepot("sync", "conflicts", "--format", "json").stdout


@pytest.mark.slow
async def test_the_newer_digest_stays_though_a_lagging_alternate_shows_the_older_one(pair: Pair) -> None:
    """Both regions observe the same upstream tag, one through a lagging alternate: the newer one wins and stays."""
    a, b = pair.world["a"], pair.world["b"]
    old, new = new_image(), new_image()
    repo = "library/lagging"
    pair.part()
    for upstream, region in ((pair.upstream, a), (pair.alternate, b)):
        old.publish(upstream, repo, "1")
        assert set(await pull(region, repo, "1")) == {200}
    new.publish(pair.upstream, repo, "1")
    assert await observed(a, repo, "1") == new.digest
    pair.heal()
    await shows(b, f"{repo}:1", new.digest)
    pair.part()  # now B has nobody to ask but its alternate
    try:
        assert await asked_again(pair.alternate, b, repo, 3) == {new.digest}
    finally:
        pair.heal()
    assert await asked_again(pair.upstream, a, repo, 2) == {new.digest}
    assert (a.tags()[f"{repo}:1"], b.tags()[f"{repo}:1"]) == (new.digest, new.digest)


@pytest.mark.parametrize("seconds", [0, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
async def test_a_tag_that_moved_on_both_sides_of_a_partition_ends_alike_and_loses_nothing(
    pair: Pair, seconds: int
) -> None:
    """Partition with tag moves on both sides, then heal: all agree, the conflict is listed, nothing is lost."""
    a, b = pair.world["a"], pair.world["b"]
    base, of_a, of_b = new_image(), new_image(), new_image()
    repo = f"library/parted{seconds}"
    for upstream in (pair.upstream, pair.alternate):
        base.publish(upstream, repo, "1")
    assert set(await pull(a, repo, "1")) == {200}
    await shows(b, f"{repo}:1", base.digest)
    pair.part()
    try:
        of_a.publish(pair.upstream, repo, "1")
        of_b.publish(pair.alternate, repo, "1")
        for region, image in ((a, of_a), (b, of_b)):
            assert set(await pull(region, repo, image.digest)) == {200}
            assert await observed(region, repo, "1") == image.digest
        await asyncio.sleep(seconds)
    finally:
        pair.heal()
    await until(
        "both show the same digest",
        lambda: {region.tags()[f"{repo}:1"] for region in (a, b)},
        lambda digests: len(digests) == 1,
    )
    winner, loser = (of_a, of_b) if a.tags()[f"{repo}:1"] == of_a.digest else (of_b, of_a)
    assert a.tags()[f"{repo}:1"] == winner.digest
    for region in (a, b):
        listed = await until(
            f"{region.name} lists the conflict",
            partial(conflicts, region),
            lambda text: repo in text,
        )
        assert winner.digest in listed
        assert loser.digest in listed
    of_loser, of_winner = (a, b) if loser is of_a else (b, a)
    assert set(await pull(of_loser, repo, loser.digest)) == {200}
    async with asyncio.timeout(60):  # the link may still be left alone: known, and not to be had now
        while (status := (await ask(f"{of_winner.url}/v2/{repo}/manifests/{loser.digest}")).status) == 503:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
    assert status == 200


async def test_a_clock_a_day_ahead_is_refused_and_reported(tmp_path: Path) -> None:
    """A clock a day ahead is refused and reported."""
    ahead = new_image()
    async with (
        FakeUpstream() as upstream,
        regions(
            tmp_path,
            {"a": upstream.url, "b": None},
            {"b": ["a"]},
            prepare=lambda world: world["a"].shift_clock(DAY),
        ) as world,
    ):
        a, b = world["a"], world["b"]
        ahead.publish(upstream, "library/ahead", "1")
        assert set(await pull(a, "library/ahead", "1")) == {200}
        seen = await until("it is reported", b.sync_status, lambda peers: peers["a"]["refused_clock"] > 0)
        assert seen["a"]["refused_clock"] >= 1
        assert "library/ahead:1" not in b.tags()
        told = await asyncio.to_thread(b.entrepot, "sync", "status")
        assert "clock" in told.stdout
