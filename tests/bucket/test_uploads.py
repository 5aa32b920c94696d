"""The queue of uploads and its worker: what is stored comes to the bucket once, whatever fails or dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from entrepot.config import Config
from entrepot.part import Role, joined
from metrics.events import BucketTransferred, Event, UploadsQueued, ignore
from proxy.bucket.objects import Bucket, Object, open_bucket
from proxy.bucket.uploads import Uploader, wants_upload
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Repository
from proxy.store import uploading
from proxy.store.catalog import Proof
from proxy.store.eviction import Order
from proxy.store.store import Store
from proxy.store.uploading import Job
from tests.support.bucket import BucketServer

HERE = Repository("docker.io", "library/alpine")
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
AIM = "hash of a URL"
GRACE = 3600.0


async def keep(
    store: Store, body: bytes, *, proof: Proof = Proof.FETCHED, public: bool = False, shared: bool = False
) -> Digest:
    """Store a blob as a fill does."""
    digest = Digest.of(body)
    spool = await store.begin(digest, len(body), HERE)
    await asyncio.to_thread(spool.write, 0, body)
    await store.commit(spool, size=len(body), repository=HERE, proof=proof, public=public, shared=shared)
    return digest


async def keep_manifest(store: Store, document: dict[str, object], *, proof: Proof = Proof.FETCHED) -> Digest:
    body = json.dumps({"schemaVersion": 2, **document}).encode()
    digest = Digest.of(body)
    parsed = parse_manifest(body, None)
    await store.put_manifest(body, parsed=parsed, repository=HERE, proof=proof, public=True, digest=digest)
    return digest


def image(config: bytes, *layers: bytes) -> dict[str, object]:
    def said(body: bytes) -> dict[str, object]:
        return {"mediaType": "application/octet-stream", "digest": Digest.of(body), "size": len(body)}

    return {"mediaType": IMAGE, "config": said(config), "layers": [said(layer) for layer in layers]}


def index(*manifests: tuple[str, int]) -> dict[str, object]:
    listed = [{"mediaType": IMAGE, "digest": digest, "size": size} for digest, size in manifests]
    return {"mediaType": INDEX, "manifests": listed}


async def one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def waiting(store: Store) -> set[str]:
    def read(connection: object) -> set[str]:
        return {row[0] for row in connection.execute("SELECT digest FROM upload")}  # type: ignore[attr-defined]

    return await store.catalog.read(read)


async def has(bucket: Bucket, *digests: Digest) -> list[bool]:
    return [await bucket.look(digest) is not None for digest in digests]


@asynccontextmanager
async def uploading_to(store: Store, bucket: Bucket, emit: Callable[[Event], None] = ignore) -> AsyncIterator[None]:
    task = asyncio.create_task(Uploader(store, bucket, emit, GRACE).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def drained(store: Store, left: int = 0) -> None:
    """Return when at most `left` wait."""
    async with asyncio.timeout(60):
        while len(await waiting(store)) > left:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_image_comes_to_the_bucket_its_manifests_after_what_they_name(store: Store, bucket: Bucket) -> None:
    await store.catalog.aim(AIM)
    config, layer = os.urandom(500), os.urandom(9 << 20)
    manifest = await keep_manifest(store, image(config, layer))
    tops = await keep_manifest(store, index((manifest, 300), (Digest.of(b"another platform"), 300)))
    async with uploading_to(store, bucket):
        await keep(store, config, public=True)
        await drained(store, left=2)
        assert await has(bucket, Digest.of(config), manifest, tops) == [True, False, False]
        await keep(store, layer)
        await drained(store)
    assert await has(bucket, Digest.of(config), Digest.of(layer), manifest, tops) == [True] * 4
    found = await bucket.read(manifest, 1 << 20)
    assert found is not None
    assert (found[1], found[2]) == (IMAGE, True)
    marks = [await bucket.look(Digest.of(body)) for body in (config, layer)]
    assert [one.public for one in marks if one] == [True, False]


async def test_without_a_store_nothing_is_queued(store: Store) -> None:
    await keep(store, b"layer")
    assert await waiting(store) == set()


async def test_what_came_from_a_node_or_the_bucket_is_not_queued_unless_somebody_removed_it(store: Store) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer", shared=True)
    assert await waiting(store) == set()
    await store.catalog.remove(HERE, digest)
    await store.catalog.lose_blob(digest, lambda: False)
    await keep(store, b"layer", shared=True)
    assert await waiting(store) == {digest}


async def test_a_store_that_is_new_is_given_everything_once(store: Store, bucket: Bucket) -> None:
    digests = {await keep(store, bytes([number]) * 100) for number in range(5)}
    await store.catalog.aim(AIM)
    async with uploading_to(store, bucket):
        async with asyncio.timeout(30):
            while not all(await has(bucket, *digests)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await drained(store)
    await store.catalog.aim(AIM)
    assert not await store.catalog.write(lambda transaction: uploading.queue_some(transaction, 0.0))
    await store.catalog.aim("another store")
    assert await store.catalog.write(lambda transaction: uploading.queue_some(transaction, 0.0))
    assert await waiting(store) == digests


async def test_a_store_that_is_given_up_leaves_no_queue_and_holds_nothing(store: Store) -> None:
    await store.catalog.aim(AIM)
    await keep(store, b"imported", proof=Proof.IMPORTED)
    await store.catalog.aim(None)
    await keep(store, b"later")
    assert await waiting(store) == set()
    assert (await store.evict(Order("gc"))).moved


async def test_what_was_imported_is_not_evicted_before_it_is_uploaded(store: Store, bucket: Bucket) -> None:
    await store.catalog.aim(AIM)
    imported = await keep(store, b"imported", proof=Proof.IMPORTED)
    fetched = await keep(store, b"fetched")
    assert [digest for digest, _ in (await store.evict(Order("gc"))).moved] == [fetched]
    async with uploading_to(store, bucket):
        await drained(store)
    assert [digest for digest, _ in (await store.evict(Order("gc"))).moved] == [imported]


async def test_what_is_imported_is_held_also_where_it_was_here_before(store: Store) -> None:
    await store.catalog.aim(AIM)
    waits, uploaded = await keep(store, b"waits"), await keep(store, b"uploaded")
    await store.catalog.write(lambda transaction: uploading.gave_up(transaction, uploaded))
    for digest, size in ((waits, 5), (uploaded, 8)):
        await store.catalog.store_blob(digest, size=size, parsed=None, public=False, membership=(HERE, Proof.IMPORTED))
    assert await waiting(store) == {waits, uploaded}
    assert not (await store.evict(Order("gc"))).moved


async def test_what_was_removed_and_is_proven_anew_is_renewed_in_the_bucket(store: Store) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await store.catalog.write(lambda transaction: uploading.gave_up(transaction, digest))
    await store.catalog.prove(Repository("ghcr.io", "another"), digest, Proof.HEAD)
    assert await waiting(store) == set()
    await store.catalog.remove(HERE, digest)
    await store.catalog.prove(HERE, digest, Proof.HEAD)
    assert await waiting(store) == {digest}


@pytest.mark.parametrize("role", ["worker", "command"])
async def test_only_a_node_says_which_store_the_queue_is_for(tmp_path: Path, store: Store, role: Role) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"imported", proof=Proof.IMPORTED)
    config = Config(data=tmp_path / "data", upstreams=())
    async with joined(config, store, ignore, role):
        assert await waiting(store) == {digest}
    async with joined(config, store, ignore, "node"):
        assert await waiting(store) == set()


async def test_what_was_wrong_lately_is_put_again(
    store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:  # P38
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await bucket.put(digest, one(b"other"), size=5, media_type=None, public=False)
    store.suspect(digest, 60)
    later = time.monotonic() + 120
    monkeypatch.setattr("proxy.store.coherence.monotonic", lambda: later)
    assert not store.suspected(digest)
    async with uploading_to(store, bucket):
        await drained(store)
    found = await bucket.read(digest, 100)
    assert found is not None
    assert found[0] == b"layer"


async def test_an_upload_that_fails_as_nobody_foresaw_ends_no_other(
    store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.catalog.aim(AIM)
    bad, good = await keep(store, b"bad"), await keep(store, b"good")
    look = bucket.look

    async def broken(digest: Digest) -> Object | None:
        if digest == bad:
            raise RuntimeError("who knows")
        return await look(digest)

    monkeypatch.setattr(bucket, "look", broken)
    async with uploading_to(store, bucket):
        await drained(store, left=1)
    assert await waiting(store) == {bad}
    monkeypatch.undo()
    assert await has(bucket, good) == [True]


async def test_a_long_queue_is_not_run_through_while_all_of_it_fails(
    store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.catalog.aim(AIM)
    for number in range(30):
        await keep(store, bytes([number]))
    tried: list[Digest] = []
    enough = asyncio.Event()

    async def refused(digest: Digest) -> None:
        tried.append(digest)
        if len(tried) == 4:
            enough.set()
        raise Unavailable("there is no such bucket")

    monkeypatch.setattr(bucket, "look", refused)
    async with uploading_to(store, bucket):
        await asyncio.wait_for(enough.wait(), 30)
        await asyncio.sleep(0.2)
    assert len(tried) < 10


async def test_what_waits_for_a_blob_is_found_by_what_names_it(store: Store) -> None:
    def plan(connection: sqlite3.Connection) -> list[str]:
        about = {"digest": "x", "now": 0.0}
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {uploading.WAKE}", about)]

    steps = await store.catalog.write(lambda transaction: plan(transaction.connection))
    assert "SEARCH upload USING PRIMARY KEY (digest=?)" in steps
    assert any("edge_child (child=?)" in step for step in steps)


async def test_what_was_evicted_before_it_was_uploaded_leaves_the_queue(store: Store, bucket: Bucket) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await store.evict(Order("gc"))
    async with uploading_to(store, bucket):
        await drained(store)
    assert await has(bucket, digest) == [False]


async def test_wrong_bytes_on_the_disk_never_reach_the_bucket(store: Store, bucket: Bucket, tmp_path: Path) -> None:
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    file = tmp_path / "data" / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    file.chmod(0o600)
    file.write_bytes(b"rotte")
    async with uploading_to(store, bucket):
        await drained(store)
    assert await has(bucket, digest) == [False]


async def test_a_backlog_is_uploaded_when_the_bucket_is_back(
    server: BucketServer, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.bucket.objects.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("proxy.bucket.breaker.FIRST", 0.2)
    events: list[Event] = []
    await store.catalog.aim(AIM)
    async with open_bucket(url, events.append) as bucket, uploading_to(store, bucket, events.append):
        server.pause()
        try:
            digests = [await keep(store, bytes([number]) * 1000) for number in range(20)]
            async with asyncio.timeout(30):
                while bucket.failing is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert len(await waiting(store)) == 20
        finally:
            server.resume()
            monkeypatch.setattr("proxy.bucket.objects.ANSWER_SECONDS", 10)
        await drained(store)
        assert all(await has(bucket, *digests))
    assert sum(event.bytes for event in events if isinstance(event, BucketTransferred)) == 20_000
    assert any(isinstance(event, UploadsQueued) for event in events)


async def test_content_that_turns_out_to_be_public_is_marked_so_later(store: Store, bucket: Bucket) -> None:  # P43
    await store.catalog.aim(AIM)
    async with uploading_to(store, bucket):
        digest = await keep(store, b"layer")
        await drained(store)
        await store.catalog.store_blob(digest, size=5, parsed=None, public=True, membership=None)
        await drained(store)
    found = await bucket.look(digest)
    assert found is not None
    assert found.public


async def test_what_became_public_while_it_was_uploaded_is_uploaded_again(store: Store) -> None:  # P43
    await store.catalog.aim(AIM)
    digest = await keep(store, b"layer")
    await store.catalog.store_blob(digest, size=5, parsed=None, public=True, membership=None)
    await store.catalog.write(lambda transaction: uploading.finished(transaction, digest, 0.0, public=False))
    assert await waiting(store) == {digest}
    await store.catalog.write(lambda transaction: uploading.finished(transaction, digest, 0.0, public=True))
    assert await waiting(store) == set()


JOB = Job(Digest.of(b"x"), 0, 10, None, public=False, present=True, ready=True)
THERE = Object(JOB.digest, 10, 1000.0)


def test_an_object_that_is_there_is_put_again_only_for_a_reason() -> None:
    assert wants_upload(JOB, None, 1000, GRACE)
    assert not wants_upload(JOB, THERE, 1000, GRACE)
    assert wants_upload(JOB, replace(THERE, size=9), 1000, GRACE)
    assert wants_upload(replace(JOB, public=True), THERE, 1000, GRACE)
    assert not wants_upload(JOB, replace(THERE, public=True), 1000, GRACE)


@given(st.floats(0, 10 * GRACE))
def test_what_a_collector_could_take_soon_is_put_again(age: float) -> None:
    assert wants_upload(JOB, THERE, THERE.modified + age, GRACE) == (age > GRACE / 2)


UPLOAD_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from metrics.events import ignore
from proxy.bucket.objects import open_bucket
from proxy.bucket.uploads import Uploader
from proxy.store.store import Store

async def main():
    store = await Store.open(Path(sys.argv[1]))
    def emit(event):
        print(type(event).__name__, getattr(event, "operation", ""), flush=True)
    async with open_bucket(sys.argv[2], emit) as bucket:
        await Uploader(store, bucket, emit, 3600.0).run()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3, 8, 15])
async def test_a_killed_process_forgets_no_upload(tmp_path: Path, bucket: Bucket, url: str, after: int) -> None:
    store = await Store.open(tmp_path / "data")
    await store.catalog.aim(AIM)
    digests = [await keep(store, os.urandom(1 << 20)) for _ in range(8)]
    digests.append(await keep(store, os.urandom(40 << 20)))
    await store.close()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UPLOAD_AND_WAIT, str(tmp_path / "data"), url, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    for _ in range(after):
        await asyncio.wait_for(child.stdout.readline(), 60)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    store = await Store.open(tmp_path / "data")
    try:
        left = await waiting(store)
        assert all(digest in left or there for digest, there in zip(digests, await has(bucket, *digests), strict=True))
        async with uploading_to(store, bucket):
            await drained(store)
        assert all(await has(bucket, *digests))
    finally:
        await store.close()
