"""Clients are sent to the bucket for what they may have and it has, and are served in every other case."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp.test_utils import RawTestServer
from yarl import URL

from metrics.events import Event, RequestFinished
from proxy.app import Face
from proxy.bucket.objects import Bucket
from proxy.bucket.redirects import SMALL, Redirects
from proxy.memory import MemorySource
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.catalog import Proof
from proxy.store.eviction import Order
from proxy.store.store import Store
from tests.bucket.test_uploads import AIM, HERE, drained, image, keep, keep_manifest, uploading_to
from tests.support.bucket import BucketServer

THERE = Repository("ghcr.io", "other/app")
DATA = os.urandom(SMALL + 1)
DIGEST = Digest.of(DATA)


async def evicted(store: Store, bucket: Bucket, body: bytes = DATA, *, public: bool = False) -> Digest:
    """Leave a blob in the bucket alone."""
    await store.catalog.aim(AIM)
    digest = await keep(store, body, public=public)
    async with uploading_to(store, bucket):
        await drained(store)
    await store.evict(Order("gc"))
    return digest


@pytest.fixture
def redirects(store: Store, bucket: Bucket) -> Redirects:
    return Redirects(store, bucket)


async def test_a_blob_that_was_evicted_is_had_at_the_url(store: Store, bucket: Bucket, redirects: Redirects) -> None:
    await evicted(store, bucket)
    location = await redirects.location(HERE, DIGEST)
    assert location is not None
    async with aiohttp.ClientSession() as http, http.get(URL(location, encoded=True)) as answer:
        assert await answer.read() == DATA


async def test_knowing_a_digest_is_no_permission(store: Store, bucket: Bucket, redirects: Redirects) -> None:  # P43
    await evicted(store, bucket)
    assert await redirects.location(THERE, DIGEST) is None
    manifest = await keep_manifest(store, image(DATA))
    await store.catalog.prove(THERE, manifest, Proof.FETCHED)
    assert await redirects.location(THERE, DIGEST) is None


async def test_a_manifest_that_names_it_suffices_for_a_public_blob(
    store: Store, bucket: Bucket, redirects: Redirects
) -> None:  # P43
    await evicted(store, bucket, public=True)
    assert await redirects.location(THERE, DIGEST) is None
    manifest = await keep_manifest(store, image(DATA))
    await store.catalog.prove(THERE, manifest, Proof.FETCHED)
    assert await redirects.location(THERE, DIGEST) is not None


async def test_what_is_small_stored_here_or_nowhere_is_served(
    store: Store, bucket: Bucket, redirects: Redirects
) -> None:
    small = await evicted(store, bucket, b"small")
    assert await redirects.location(HERE, small) is None
    await store.catalog.prove(HERE, Digest.of(b"nowhere"), Proof.HEAD)
    assert await redirects.location(HERE, Digest.of(b"nowhere")) is None
    await evicted(store, bucket)
    await keep(store, DATA)
    assert await redirects.location(HERE, DIGEST) is None


async def test_nobody_is_sent_to_an_object_of_another_size(
    store: Store, bucket: Bucket, redirects: Redirects
) -> None:  # P38
    await evicted(store, bucket)

    async def larger() -> AsyncIterator[bytes]:
        yield DATA[: SMALL + 1 - 9]
        yield b"too much"
        yield b"of it...."

    await bucket.put(DIGEST, larger(), size=len(DATA) + 8, media_type=None, public=False)
    assert await redirects.location(HERE, DIGEST) is None


async def test_the_bucket_is_asked_once_a_minute_for_a_blob(
    store: Store, bucket: Bucket, redirects: Redirects, events: list[Event]
) -> None:
    await evicted(store, bucket)
    events.clear()
    for _ in range(10):
        assert await redirects.location(HERE, DIGEST) is not None
    assert len(events) == 1


async def test_nobody_is_sent_to_a_bucket_that_has_come_to_stand_still(
    server: BucketServer, store: Store, bucket: Bucket, redirects: Redirects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.bucket.redirects.HEARD_SECONDS", 0.0)
    await evicted(store, bucket)
    assert await redirects.location(HERE, DIGEST) is not None
    monkeypatch.setattr("proxy.bucket.objects.ANSWER_SECONDS", 0.2)
    server.pause()
    try:
        assert await redirects.location(HERE, DIGEST) is None
        assert bucket.failing is not None
    finally:
        server.resume()


async def test_a_bucket_that_fails_sends_nobody_anywhere(store: Store, bucket: Bucket, redirects: Redirects) -> None:
    await evicted(store, bucket)
    assert await redirects.location(HERE, DIGEST) is not None
    bucket._failed("did not answer in time", 0.0, True)
    assert await redirects.location(HERE, DIGEST) is None


@pytest.fixture
async def face(store: Store, redirects: Redirects, events: list[Event]) -> AsyncIterator[str]:
    source = MemorySource("upstream")
    source.add_blob(HERE, DATA)
    face = Face(source, {"docker.io"}, "docker.io", events.append, locate=redirects.location)
    async with RawTestServer(face) as server:
        yield f"{server.make_url('/v2/library/alpine/blobs/')}{DIGEST}"


async def test_a_get_is_redirected_and_nothing_else_is(
    store: Store, bucket: Bucket, face: str, events: list[Event]
) -> None:
    await evicted(store, bucket)
    async with aiohttp.ClientSession() as http:
        async with http.get(face, allow_redirects=False) as answer:
            assert answer.status == 307
            assert answer.headers["Docker-Content-Digest"] == DIGEST
            assert answer.headers["Cache-Control"] == "no-store"
            secret = answer.headers["Location"]
        async with http.get(face, headers={"Range": "bytes=5-9"}) as answer:
            assert (answer.status, await answer.read()) == (206, DATA[5:10])
        async with http.head(face, allow_redirects=False) as answer:  # P7
            assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(DATA)))
        async with http.get(face, headers={"If-None-Match": f'"{DIGEST}"'}, allow_redirects=False) as answer:
            assert answer.status == 304
        async with http.get(face, headers={"Range": "bytes=0-1,5-9"}, allow_redirects=False) as answer:  # P5
            assert answer.status == 206
    finished = [event for event in events if isinstance(event, RequestFinished)]
    assert [event.outcome for event in finished[:2]] == ["redirected", "redirected"]
    assert "X-Amz-Signature" in secret
    assert not any("X-Amz" in str(event) for event in events)
