"""The bucket, on a real S3 server: what is put is found, in parts too, and one that stands still costs little."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator
from urllib.request import urlopen

import pytest

from metrics.events import BucketHealth, BucketRequest, Event, ignore
from proxy.bucket.connecting import BucketUnusable
from proxy.bucket.objects import PART, Bucket, digest_of, key_of, open_bucket
from proxy.bucket.source import BucketSource
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, ManifestUnknown, RangeNotSatisfiable, Unavailable
from proxy.oci.manifests import ParsedManifest, parse_manifest
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from tests.support.bucket import BucketServer

HERE = Repository("docker.io", "library/alpine")
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
INDEX = "application/vnd.oci.image.index.v1+json"


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1 << 20):
        yield data[at : at + (1 << 20)]


async def put(bucket: Bucket, data: bytes, *, media_type: str | None = None, public: bool = False) -> Digest:
    digest = Digest.of(data)
    await bucket.put(digest, chunks(data), size=len(data), media_type=media_type, public=public)
    return digest


async def read(bucket: Bucket, digest: Digest, span: ByteRange | None = None) -> bytes:
    stream = await BucketSource(bucket).open_blob(HERE, digest, span)
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def test_what_is_put_is_read_whole_and_in_parts(bucket: Bucket) -> None:  # P4
    data = os.urandom(2048)
    digest = await put(bucket, data)
    assert await read(bucket, digest) == data
    for span in (ByteRange(500, 1499), ByteRange(500, None), ByteRange(None, 500), ByteRange(2000, 5000)):
        start, end = span.resolve(len(data))
        stream = await bucket.open(digest, span)
        assert stream is not None
        assert (stream.start, stream.end, stream.size) == (start, end, 2048)
        assert await read(bucket, digest, span) == data[start:end]


@pytest.mark.parametrize("span", [ByteRange(2048, None), ByteRange(5000, 10000), ByteRange(None, 0)])
async def test_a_range_without_a_byte_is_refused_and_blames_nobody(bucket: Bucket, span: ByteRange) -> None:  # P4
    digest = await put(bucket, bytes(2048))
    for _ in range(5):
        with pytest.raises(RangeNotSatisfiable):
            await read(bucket, digest, span)
    assert bucket.failing is None


async def test_any_range_of_an_empty_blob_is_the_empty_blob(bucket: Bucket) -> None:  # P6
    digest = await put(bucket, b"")
    assert await read(bucket, digest, ByteRange(0, None)) == b""


async def test_a_large_blob_goes_up_in_parts_and_comes_down_in_small_chunks(bucket: Bucket) -> None:
    data = os.urandom(PART + 12345)
    digest = await put(bucket, data)
    stream = await bucket.open(digest)
    assert stream is not None
    hasher, largest = hashlib.sha256(), 0
    async for chunk in stream:
        hasher.update(chunk)
        largest = max(largest, len(chunk))
    assert digest.matches(hasher)
    assert largest <= 2 << 20


async def test_content_that_raises_leaves_no_object(bucket: Bucket) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(PART)
        yield bytes(PART)
        raise BadContent("wrong")

    digest = Digest.of(b"never")
    with pytest.raises(BadContent):
        await bucket.put(digest, broken(), size=3 * PART, media_type=None, public=False)
    assert await bucket.look(digest) is None
    assert bucket.failing is None


async def test_the_mark_of_public_content_and_the_media_type_are_kept(bucket: Bucket) -> None:  # P43
    source = BucketSource(bucket)
    private, public = await put(bucket, b"private"), await put(bucket, b"public", public=True)
    marks = {digest: (await source.open_blob(HERE, digest)).anonymous for digest in (private, public)}
    assert marks == {private: False, public: True}
    found = await source.manifest(HERE, await put(bucket, MANIFEST, media_type=INDEX, public=True))
    assert (found.body, found.descriptor.media_type) == (MANIFEST, INDEX)
    assert (found.anonymous, found.proven, found.servable) == (True, False, True)


async def test_what_is_not_there_is_unknown(bucket: Bucket) -> None:
    source, digest = BucketSource(bucket), Digest.of(b"nowhere")
    assert not await source.has(digest)
    with pytest.raises(BlobUnknown):
        await source.open_blob(HERE, digest)
    with pytest.raises(ManifestUnknown):
        await source.manifest(HERE, digest)


async def test_a_manifest_of_other_bytes_is_never_given(bucket: Bucket) -> None:  # P38
    digest = Digest.of(MANIFEST)
    await bucket.put(digest, chunks(MANIFEST + b" "), size=len(MANIFEST) + 1, media_type=INDEX, public=True)
    with pytest.raises(BadContent):
        await BucketSource(bucket).manifest(HERE, digest)


async def test_a_manifest_is_read_beside_the_event_loop(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def parsed(body: bytes, declared: str) -> ParsedManifest:
        threads.append(threading.get_ident())
        return parse_manifest(body, declared)

    monkeypatch.setattr("proxy.bucket.source.parse_manifest", parsed)
    await BucketSource(bucket).manifest(HERE, await put(bucket, MANIFEST, media_type=INDEX))
    assert threads
    assert threading.get_ident() not in threads


async def test_all_objects_are_listed_and_deleting_twice_is_no_error(bucket: Bucket) -> None:
    digests = {await put(bucket, bytes([number])) for number in range(5)}
    listed = [one async for page in bucket.pages() for one in page]
    assert {one.digest for one in listed} == digests
    assert all(one.size == 1 and abs(one.modified - time.time()) < 60 for one in listed)
    gone = digests.pop()
    await bucket.delete(gone)
    await bucket.delete(gone)
    assert {one.digest async for page in bucket.pages() for one in page} == digests


async def test_a_signed_url_gives_the_object_without_a_credential(bucket: Bucket) -> None:
    digest = await put(bucket, b"layer")
    url = await bucket.sign(digest, 60)
    body = await asyncio.to_thread(lambda: urlopen(url, timeout=5).read())
    assert body == b"layer"


async def test_a_paused_bucket_costs_one_wait_then_nothing_until_it_is_back(
    server: BucketServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.bucket.breaker.FIRST", 0.5)
    healed = asyncio.Event()
    told: list[Event] = []

    def emit(event: Event) -> None:
        told.append(event)
        if isinstance(event, BucketHealth) and not event.failing:
            healed.set()

    async with open_bucket(url, emit) as bucket:
        digest = await put(bucket, b"layer")
        server.pause()
        try:
            monkeypatch.setattr("proxy.bucket.objects.ANSWER_SECONDS", 0.2)
            begun = time.monotonic()
            with pytest.raises(Unavailable, match="did not answer in time"):
                await read(bucket, digest)
            assert time.monotonic() - begun < 5
            with pytest.raises(Unavailable, match="not asked again yet"):
                await read(bucket, digest)
            gets = [event.outcome for event in told if isinstance(event, BucketRequest) and event.operation == "get"]
            assert gets == ["timeout"]  # the second did not reach it
            assert bucket.failing == "did not answer in time"
        finally:
            server.resume()
            monkeypatch.setattr("proxy.bucket.objects.ANSWER_SECONDS", 10)
        async with asyncio.timeout(30):
            await healed.wait()
        assert await read(bucket, digest) == b"layer"
    assert [event.failing for event in told if isinstance(event, BucketHealth)] == [True, False]
    outcomes = {event.outcome for event in told if isinstance(event, BucketRequest) and event.operation == "get"}
    assert outcomes == {"ok", "timeout"}


async def test_no_error_shows_where_the_bucket_is_or_what_opens_it(
    server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    async with open_bucket(server.url("other"), ignore) as bucket:
        with pytest.raises(Unavailable, match="refuses the credential") as caught:
            await bucket.look(Digest.of(b""))
    for secret in ("wrong-secret", server.endpoint, "testing", "X-Amz"):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_bucket_where_nobody_listens_is_opened_without_waiting(
    server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    begun = time.monotonic()
    async with open_bucket("s3://nobody/x", ignore) as bucket:
        assert time.monotonic() - begun < 5
        for _ in range(3):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await bucket.look(Digest.of(b""))
        assert bucket.failing == "cannot be reached"


async def test_plain_http_that_is_not_allowed_is_told_apart_from_a_connection_that_broke(
    server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    async with open_bucket(server.url("other"), ignore) as bucket:
        with pytest.raises(Unavailable, match="AWS_ALLOW_HTTP=true"):
            await bucket.look(Digest.of(b""))


async def test_what_is_no_bucket_is_refused_in_words() -> None:
    with pytest.raises(BucketUnusable, match="s3://"):
        async with open_bucket("file:///tmp", ignore):
            pass


def test_keys_are_read_back_and_nothing_else_is() -> None:
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"x", algorithm)
        assert digest_of(key_of(digest)) == digest
    digest = Digest.of(b"x")
    for key in ("v1/blobs/sha256/zz/" + digest.hex, "v1/blobs/other", key_of(digest) + "x", "v1/blobs/sha256/00/00"):
        assert digest_of(key) is None
