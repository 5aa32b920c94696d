"""Knowing a digest is no permission (P43): who gets what, by which proof."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.cache.fill import Fill
from proxy.cache.tags import TagPolicy
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.source import Source
from proxy.store.claims import Claim
from proxy.upstream.credentials import Credential
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream

SECRET = blob(5000, seed=9)
LOGIN = Credential("mirror", "wonder-land")
CORP, EVE = Repository(HUB, "corp/private"), Repository(HUB, "eve/public")


def trap(digest: Digest, size: int) -> Image:
    """Return an image that names somebody else's blob as a layer."""
    image = make_image([b"public layer"])
    body = json.loads(image.body)
    body["layers"].append({"mediaType": "application/octet-stream", "digest": digest, "size": size})
    return Image(image.media_type, json.dumps(body).encode(), image.blobs)


def set_trap(upstream: FakeUpstream, digest: Digest, size: int) -> Image:
    """Publish the trap in eve's repository, without the blob that is not hers."""
    image = trap(digest, size)
    for data in image.blobs:
        upstream.add_blob(EVE.path, data)
    upstream.add_manifest(EVE.path, image.body, image.media_type, "1")
    return image


@pytest.fixture
async def private(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    """A mirror whose upstream wants its login for everything: nothing fetched is known to be public."""
    upstream.auth, upstream.username, upstream.password = "basic", LOGIN.username, LOGIN.password
    policy = TagPolicy(negative_ttl=0)
    async with laboratory(tmp_path / "private", {HUB: [upstream]}, credential=LOGIN, policy=policy) as running:
        yield running


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("warm", [False, True])
async def test_a_public_manifest_that_names_a_private_blob_gives_nobody_that_blob(
    private: Lab, upstream: FakeUpstream, method: str, warm: bool
) -> None:
    digest = upstream.add_blob(CORP.path, SECRET)
    set_trap(upstream, digest, len(SECRET))
    if warm:
        assert (await private.get(private.blob_url(digest, CORP)))[2] == SECRET
    assert (await private.get(private.manifest_url("1", EVE)))[0] == 200
    for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": f'"{digest}"'}):
        for url in (
            private.blob_url(digest, EVE),
            f"{private.url}/{HUB}/v2/{EVE.path}/blobs/{digest}",
            f"{private.url}/v2/{EVE.path}/blobs/{digest}?ns={HUB}",
            f"{private.url}/v2/{EVE.path}/manifests/{digest}",
        ):
            assert (await private.get(url, headers, method))[0] == 404
    assert (await private.get(private.blob_url(digest, CORP)))[2] == SECRET


async def test_in_mid_fill_a_stranger_gets_nothing_either(private: Lab, upstream: FakeUpstream) -> None:
    data = blob(3 << 20, seed=4)
    digest = upstream.add_blob(CORP.path, data)
    set_trap(upstream, digest, len(data))
    upstream.stall_at = 2 << 20
    pull = asyncio.create_task(private.get(private.blob_url(digest, CORP)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    assert (await private.get(private.manifest_url("1", EVE)))[0] == 200
    for headers in ({}, {"Range": "bytes=0-9"}):
        assert (await private.get(private.blob_url(digest, EVE), headers))[0] == 404
    upstream.go_on()
    assert (await pull)[2] == data


async def test_with_the_upstream_gone_no_proof_is_503(private: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(CORP.path, SECRET)
    set_trap(upstream, digest, len(SECRET))
    await private.get(private.blob_url(digest, CORP))
    await private.get(private.manifest_url("1", EVE))
    await upstream.stop_listening()
    upstream.cut_connections()
    assert (await private.get(private.blob_url(digest, EVE)))[0] == 503
    assert (await private.get(private.blob_url(digest, CORP)))[2] == SECRET


async def test_a_public_blob_that_a_member_names_needs_no_second_proof(lab: Lab, upstream: FakeUpstream) -> None:
    image = make_image([SECRET])
    for path in ("library/base", "library/derived"):
        image.publish(upstream, path, "1")
    digest = Digest.of(SECRET)
    await lab.cache.ensure_blob(Repository(HUB, "library/base"), digest)
    derived = Repository(HUB, "library/derived")
    await lab.get(lab.manifest_url("1", derived))
    asked = len(upstream.requests)
    assert (await lab.get(lab.blob_url(digest, derived)))[2] == SECRET
    assert len(upstream.requests) == asked


async def test_a_proof_by_head_downloads_nothing_again_and_is_kept(private: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(CORP.path, SECRET)
    upstream.add_blob(EVE.path, SECRET)
    await private.cache.ensure_blob(CORP, digest)
    for _ in range(2):
        assert (await private.get(private.blob_url(digest, EVE)))[2] == SECRET
    assert len([r for r in upstream.select(method="GET", contains=digest) if r.status == 200]) == 1
    assert len([r for r in upstream.select(method="HEAD", contains=digest) if r.status == 200]) == 1


async def test_a_cached_manifest_of_another_repository_is_asked_for_first(private: Lab, upstream: FakeUpstream) -> None:
    image = make_image([SECRET])
    image.publish(upstream, CORP.path, "1")
    await private.get(private.manifest_url("1", CORP))
    assert (await private.get(private.manifest_url(image.digest, CORP)))[0] == 200
    assert (await private.get(private.manifest_url(image.digest, EVE)))[0] == 404
    image.publish(upstream, EVE.path)
    assert (await private.get(private.manifest_url(image.digest, EVE)))[2] == image.body
    assert len([r for r in upstream.select(method="GET", contains="/manifests/") if r.status == 200]) == 1


async def test_one_repositorys_404_is_not_anothers(private: Lab, upstream: FakeUpstream) -> None:
    digest = Digest.of(SECRET)
    upstream.delay_headers = 0.1
    stranger = asyncio.create_task(private.get(private.blob_url(digest, EVE)))
    await upstream.wait_for(1, contains=EVE.path)
    upstream.add_blob(CORP.path, SECRET)
    owner = asyncio.create_task(private.get(private.blob_url(digest, CORP)))
    assert (await stranger)[0] == 404
    assert (await owner)[2] == SECRET


async def test_an_alternate_that_is_open_to_us_makes_nothing_public(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.auth, upstream.username, upstream.password = "basic", LOGIN.username, LOGIN.password
    async with (
        FakeUpstream() as open_to_us,
        laboratory(tmp_path / "data", {HUB: [upstream, open_to_us]}, credential=LOGIN) as lab,
    ):
        digest = upstream.add_blob(CORP.path, SECRET)
        open_to_us.add_blob(CORP.path, SECRET)
        set_trap(upstream, digest, len(SECRET))
        upstream.status_for = lambda request: 500 if digest in request.path else None
        assert (await lab.get(lab.blob_url(digest, CORP)))[2] == SECRET
        upstream.status_for = None
        await lab.get(lab.manifest_url("1", EVE))
        assert (await lab.get(lab.blob_url(digest, EVE)))[0] == 404


async def test_who_joins_a_fill_as_it_ends_is_not_told_what_another_repository_was(
    lab: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    # P43: a failure belongs to a repository, never to a digest alone
    digest = upstream.add_blob("library/alpine", b"here")
    ending, go_on = asyncio.Event(), asyncio.Event()
    release, join = lab.store.release, lab.cache._flights.join

    async def held_up(claim: Claim) -> None:
        ending.set()
        await go_on.wait()
        await release(claim)

    def join_and_go_on(fill: Fill, repository: Repository, sources: Sequence[Source]) -> None:
        join(fill, repository, sources)
        go_on.set()

    monkeypatch.setattr(lab.store, "release", held_up)
    monkeypatch.setattr(lab.cache._flights, "join", join_and_go_on)
    elsewhere = asyncio.create_task(lab.get(lab.blob_url(digest, Repository(HUB, "library/without"))))
    async with asyncio.timeout(30):
        await ending.wait()
        status, _, body = await lab.get(lab.blob_url(digest))
        assert (await elsewhere)[0] == 404
    assert (status, body) == (200, b"here")
