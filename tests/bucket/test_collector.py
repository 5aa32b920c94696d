"""The collector: what was removed leaves the bucket when its grace is over, and nothing else ever does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metrics.events import BucketCollected, Event, ignore
from proxy.bucket.collector import Collection, Collector, always
from proxy.bucket.objects import Bucket
from proxy.bucket.uploads import wants_upload
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository
from proxy.store import uploading
from proxy.store.catalog import Proof
from proxy.store.store import Store
from tests.bucket.test_uploads import AIM, GRACE, HERE, drained, has, image, index, keep, keep_manifest, uploading_to

THERE = Repository("ghcr.io", "other/app")


class Clock:
    """Unix time, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(store: Store, bucket: Bucket, clock: Clock) -> Collector:
    return Collector(store.catalog, bucket, ignore, GRACE, always, clock=clock)


async def gone(collector: Collector) -> set[Digest]:
    """Collect, and return what went."""
    found: set[Digest] = set()
    assert await collector.collect(report=lambda one: found.add(one.digest)) is not None
    return found


async def upload(store: Store, bucket: Bucket) -> None:
    async with uploading_to(store, bucket):
        await drained(store)


async def test_what_was_removed_goes_when_its_grace_is_over(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector
) -> None:
    await store.catalog.aim(AIM)
    config, layer = await keep(store, b"config"), await keep(store, b"layer")
    manifest = await keep_manifest(store, image(b"config", b"layer"))
    kept = await keep(store, b"kept")
    await upload(store, bucket)
    clock.ahead = 10 * GRACE
    assert await gone(collector) == set()
    await store.catalog.remove(HERE, manifest)
    clock.ahead = GRACE - 60
    assert await gone(collector) == set()
    assert await has(bucket, config, layer, manifest, kept) == [True] * 4
    clock.ahead = GRACE + 60
    assert await gone(collector) == {config, layer, manifest}
    assert await has(bucket, config, layer, manifest, kept) == [False, False, False, True]


async def test_what_names_others_goes_before_these(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector
) -> None:  # P27
    await store.catalog.aim(AIM)
    bodies = [bytes([number]) for number in range(6)]
    for body in bodies:
        await keep(store, body)
    manifest = await keep_manifest(store, image(*bodies))
    top = await keep_manifest(store, index((manifest, 300)))
    await upload(store, bucket)
    await store.catalog.remove(HERE, top)
    clock.ahead = 2 * GRACE
    went: list[Digest] = []
    await collector.collect(report=lambda one: went.append(one.digest))
    assert went[:2] == [top, manifest]
    assert len(went) == 8


async def test_what_a_manifest_names_stays_while_that_is_on_its_way_to_the_bucket(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector
) -> None:  # P27
    await store.catalog.aim(AIM)
    config, layer = await keep(store, b"config"), await keep(store, b"layer")
    manifest = await keep_manifest(store, image(b"config", b"layer"))
    await upload(store, bucket)
    await store.catalog.remove(HERE, manifest)
    await store.catalog.write(
        lambda transaction: transaction.connection.execute(
            "INSERT INTO upload (digest, since) VALUES (?, 0)", (manifest,)
        )
    )
    clock.ahead = 2 * GRACE
    assert await gone(collector) == set()
    assert await has(bucket, config, layer, manifest) == [True] * 3


async def test_a_layer_that_another_image_names_stays(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector
) -> None:
    await store.catalog.aim(AIM)
    for body in (b"config", b"other config", b"base"):
        await keep(store, body)
    removed = await keep_manifest(store, image(b"config", b"base"))
    await keep_manifest(store, image(b"other config", b"base"))
    await upload(store, bucket)
    await store.catalog.remove(HERE, removed)
    clock.ahead = 2 * GRACE
    assert await gone(collector) == {removed, Digest.of(b"config")}


async def test_a_layer_that_an_image_of_another_node_names_stays(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector, tmp_path: Path
) -> None:
    await store.catalog.aim(AIM)
    base = await keep(store, b"base", public=True)
    removed = await keep_manifest(store, image(b"base"))
    await upload(store, bucket)
    other = await Store.open(tmp_path / "another node")
    try:
        await other.catalog.aim(AIM)
        await keep(other, b"their config")
        await keep(other, b"base", public=True, shared=True)
        theirs = await keep_manifest(other, image(b"their config", b"base"))
        await upload(other, bucket)
    finally:
        await other.close()
    await store.catalog.prove(THERE, theirs, Proof.FETCHED)
    await store.catalog.remove(HERE, removed)
    clock.ahead = 2 * GRACE
    assert await gone(collector) == {removed}
    assert await has(bucket, base, theirs) == [True, True]
    learned = await store.catalog.blob(theirs)
    assert learned is not None
    assert not learned.present


async def test_what_no_record_speaks_of_is_kept_and_counted(store: Store, bucket: Bucket, clock: Clock) -> None:
    events: list[Event] = []

    async def content() -> AsyncIterator[bytes]:
        yield b"stranger"

    stranger = Digest.of(b"stranger")
    await bucket.put(stranger, content(), size=8, media_type=None, public=False)
    clock.ahead = 100 * GRACE
    done = await Collector(store.catalog, bucket, events.append, GRACE, always, clock=clock).collect()
    assert done == Collection(objects=1, unknown=1)
    assert events == [BucketCollected("done", 0, 0, 1)]
    assert await has(bucket, stranger) == [True]


async def test_a_dry_run_tells_and_deletes_nothing(
    store: Store, bucket: Bucket, clock: Clock, collector: Collector
) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await upload(store, bucket)
    await store.catalog.remove(HERE, digest)
    clock.ahead = 2 * GRACE
    done = await collector.collect(dry_run=True)
    assert done == Collection(objects=1, deleted=1, bytes=5)
    assert await has(bucket, digest) == [True]


async def test_what_is_proven_anew_right_before_it_would_go_stays(
    store: Store, bucket: Bucket, clock: Clock, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await upload(store, bucket)
    await store.catalog.remove(HERE, digest)
    clock.ahead = 2 * GRACE
    look = bucket.look

    async def looked(asked: Digest) -> object:
        await store.catalog.prove(THERE, asked, Proof.HEAD)
        return await look(asked)

    monkeypatch.setattr(bucket, "look", looked)
    assert await gone(collector) == set()


async def test_an_upload_makes_an_old_object_young_before_the_collector_can_take_it(
    store: Store, bucket: Bucket, clock: Clock
) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await upload(store, bucket)
    found = await bucket.look(digest)
    assert found is not None
    await store.catalog.write(lambda transaction: uploading.recorded(transaction, digest, 0.0, wanted=True, held=False))
    job = (await store.catalog.read(lambda connection: uploading.due(connection, 1.0, 1)))[0]
    assert not wants_upload(job, found, found.modified + GRACE / 2 - 1, GRACE)
    assert wants_upload(job, found, found.modified + GRACE / 2 + 1, GRACE)


async def test_of_two_collectors_one_collects(store: Store, bucket: Bucket, clock: Clock) -> None:
    held = asyncio.Lock()
    listing, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def turn() -> AsyncIterator[bool]:
        if held.locked():
            yield False
            return
        async with held:
            listing.set()
            await go_on.wait()
            yield True

    def another() -> Collector:
        return Collector(store.catalog, bucket, ignore, GRACE, turn, clock=clock)

    first = asyncio.create_task(another().collect())
    await listing.wait()
    assert await another().collect() is None
    go_on.set()
    assert await first == Collection()


async def test_a_bucket_that_fails_half_way_loses_nothing_that_is_wanted(
    store: Store, bucket: Bucket, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    await store.catalog.aim(AIM)
    digests = [await keep(store, body) for body in (b"one", b"two")]
    await upload(store, bucket)
    for digest in digests:
        await store.catalog.remove(HERE, digest)
    clock.ahead = 2 * GRACE
    delete, left = bucket.delete, iter([True])

    async def flaky(digest: Digest) -> None:
        if next(left, None) is None:
            raise Unavailable("the bucket answered with 500")
        await delete(digest)

    monkeypatch.setattr(bucket, "delete", flaky)
    collector = Collector(store.catalog, bucket, events.append, GRACE, always, clock=clock)
    with pytest.raises(Unavailable):
        await collector.collect()
    assert events == [BucketCollected("failed", 1, 3, 0)]
    monkeypatch.setattr(bucket, "delete", delete)
    assert len(await gone(collector)) == 1
