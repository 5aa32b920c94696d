"""Three regions, each the others' peer; only A has an upstream. Each test brings images of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count

import pytest
import pytest_asyncio

from proxy.oci.digest import Digest
from tests.scenarios.fleets import pull
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.fleet import Answer, ask
from tests.support.regions import Region, World, regions, shows, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
KIB = 1024
MIB = 1024 * KIB
MESH = {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
FRESH = {"Accept": "*/*", "Cache-Control": "no-cache"}
_numbers = count(1)


@dataclass
class Stage:
    """Regions, A's upstream, and what the tests bring."""

    upstream: FakeUpstream
    world: World

    def offer(self, *sizes: int, subject: Image | None = None) -> tuple[str, Image]:
        """Put an image of layers of such sizes on offer upstream; return its repository. Its tag is 1."""
        number = next(_numbers)
        layers = [blob(size, seed=number * 100 + at) for at, size in enumerate(sizes)]
        image = make_image(layers, subject=subject)
        repo = f"library/region{number}"
        image.publish(self.upstream, repo, "1")
        return repo, image

    async def pulled(self, *sizes: int, region: str = "a") -> tuple[str, Image]:
        """Pull a new image in a region."""
        repo, image = self.offer(*sizes)
        assert set(await pull(self.world[region], repo, "1")) == {200}
        return repo, image

    async def followed(self, repo: str, image: Image, *names: str) -> None:
        """Wait until regions show the image's tag."""
        for name in names:
            await shows(self.world[name], f"{repo}:1", image.digest)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The three regions; a test leaves upstream and links as it found them."""
    async with (
        FakeUpstream() as upstream,
        regions(tmp_path_factory.mktemp("mesh"), {"a": upstream.url, "b": None, "c": None}, MESH) as world,
    ):
        yield Stage(upstream, world)


def all_digests(image: Image) -> set[str]:
    """Return the digests of an image's manifest and blobs."""
    return {str(image.digest), *(str(Digest.of(data)) for data in image.blobs)}


async def get(region: Region, path: str, **headers: str) -> Answer:
    return await ask(f"{region.url}/v2/{path}", headers={"Accept": "*/*", **headers})


async def refused(region: Region, path: str) -> None:
    """Ask until the upstream, which is asked at most once a second, has refused."""
    async with asyncio.timeout(30):
        while True:
            if (await get(region, path, **FRESH)).status != 200:
                return
            await asyncio.sleep(0.1)


async def test_an_image_pulled_in_a_is_whole_in_the_others_that_have_no_upstream(stage: Stage) -> None:
    """An image pulled in A is servable in B without B's upstream."""
    repo, image = await stage.pulled(70 * KIB, 3 * MIB)
    await stage.followed(repo, image, "b", "c")
    for name in ("b", "c"):
        assert all_digests(image) <= await asyncio.to_thread(stage.world[name].present)
        assert set(await pull(stage.world[name], repo, "1")) == {200}
    assert stage.upstream.count(method="GET", contains=repo) == 1 + len(image.blobs)


async def test_a_credential_that_expires_upstream_deletes_nothing_anywhere(stage: Stage) -> None:
    """The upstream answers A with 401 to everything: no region deletes anything; B and C go on serving."""
    repo, image = await stage.pulled(70 * KIB)
    sign, told = await stage.pulled(KIB)
    await stage.followed(repo, image, "b", "c")
    await stage.followed(sign, told, "b", "c")
    stage.upstream.status_for = lambda _: 401
    try:
        await refused(stage.world["a"], f"{repo}/manifests/1")
        await asyncio.to_thread(stage.world["a"].entrepot, "rm", f"docker.io/{sign}:1")
        for name in ("b", "c"):  # what A says after the refusal has come
            await shows(stage.world[name], f"{sign}:1", None)
            assert (await asyncio.to_thread(stage.world[name].tags))[f"{repo}:1"] == image.digest
            assert set(await pull(stage.world[name], repo, image.digest)) == {200}
        assert (await asyncio.to_thread(stage.world["a"].tags))[f"{repo}:1"] == image.digest
        assert all_digests(image) <= await asyncio.to_thread(stage.world["a"].present)
    finally:
        stage.upstream.status_for = None


async def test_what_is_removed_in_a_is_removed_in_the_others_after_the_grace(stage: Stage) -> None:
    """`entrepot rm` in A: B and C follow after the grace."""
    repo, image = await stage.pulled(70 * KIB)
    await stage.followed(repo, image, "b", "c")
    await asyncio.to_thread(stage.world["a"].entrepot, "rm", f"docker.io/{repo}:1")
    for name in ("b", "c"):
        await shows(stage.world[name], f"{repo}:1", None)
        assert set(await pull(stage.world[name], repo, "1")) & {404, 503}


async def test_a_signature_that_comes_later_is_told_with_the_old_image(stage: Stage) -> None:
    """A new signature (referrer) of an old image arrives."""
    repo, image = await stage.pulled(70 * KIB)
    await stage.followed(repo, image, "b")
    signature = make_image([b"signed " + image.digest.encode()], subject=image, artifact_type="application/example")
    signature.publish(stage.upstream, repo)
    assert set(await pull(stage.world["a"], repo, signature.digest)) == {200}
    b = stage.world["b"]
    await until("b has the signature", b.present, all_digests(signature).issubset)
    answer = await get(b, f"{repo}/referrers/{image.digest}")
    assert answer.status == 200
    assert [one["digest"] for one in json.loads(answer.body)["manifests"]] == [signature.digest]


async def test_two_regions_that_miss_the_same_blobs_at_once_do_not_wait_for_each_other(stage: Stage) -> None:
    """Two regions that miss the same digest must not wait for each other: A fetches it for both, once."""
    repo, image = stage.offer(70 * KIB, 2 * MIB, 3 * MIB)
    wanted = [f"{repo}/blobs/{Digest.of(data)}" for data in image.blobs]
    asked = [(name, path) for path in wanted for name in ("b", "c")]
    answers = await asyncio.gather(*(get(stage.world[name], path) for name, path in asked))
    bodies = dict(zip(wanted, image.blobs, strict=True))
    assert [answer.status for answer in answers] == [200] * len(asked)
    assert all(answer.body == bodies[path] for answer, (_, path) in zip(answers, asked, strict=True))
    for path in wanted:
        assert stage.upstream.count(method="GET", contains=path) == 1


async def test_what_nobody_has_is_refused_in_all_regions_and_hangs_in_none(stage: Stage) -> None:
    """No loops, no deadlocks."""
    repo, image = await stage.pulled(KIB)
    await stage.followed(repo, image, "b", "c")
    nowhere = Digest.of(f"nobody has {repo}".encode())
    regions = stage.world.members.values()
    answers = await asyncio.gather(*(get(region, f"{repo}/blobs/{nowhere}") for region in regions))
    assert {answer.status for answer in answers} <= {404, 503}
    assert set(await pull(stage.world["c"], repo, "1")) == {200}


async def test_a_pull_and_the_sync_of_one_blob_share_a_download(stage: Stage) -> None:
    """An on-demand pull and a sync of the same blob share a download."""
    b = stage.world["b"]
    repo, image = stage.offer(KIB, 6 * MIB)
    links = [stage.world.link("b", other) for other in ("a", "c")]
    before = sum(link.down.bytes for link in links)
    for link in links:
        link.rate = 4 * MIB
    try:
        assert set(await pull(stage.world["a"], repo, "1")) == {200}
        big = Digest.of(image.blobs[-1])
        await until("b fetches the layer", lambda: _spools(b), lambda spools: any(big.hex in name for name in spools))
        answer = await get(b, f"{repo}/blobs/{big}")
        assert (answer.status, answer.body) == (200, image.blobs[-1])
        await stage.followed(repo, image, "b")
    finally:
        for link in links:
            link.rate = None
    assert sum(link.down.bytes for link in links) - before < 7 * MIB


async def test_a_paused_region_fetches_nothing_until_it_resumes(stage: Stage) -> None:
    """Pause and resume."""
    b = stage.world["b"]
    await asyncio.to_thread(b.entrepot, "sync", "pause")
    repo, image = await stage.pulled(70 * KIB)
    await stage.followed(repo, image, "c")
    seen = await until("b knows of the image", b.sync_status, lambda peers: peers["a"]["images_behind"] > 0)
    assert seen["a"]["held"]
    assert not all_digests(image) & await asyncio.to_thread(b.present)
    await asyncio.to_thread(b.entrepot, "sync", "resume")
    await stage.followed(repo, image, "b")
    assert all_digests(image) <= await asyncio.to_thread(b.present)
    await until("b is current", b.sync_status, lambda peers: {one["state"] for one in peers.values()} == {"current"})


def _spools(region: Region) -> list[str]:
    return [path.name for path in (region.data / "ingest").glob("*")]
