"""`entrepot gc --bucket`: the command deletes from the bucket what was removed, and says what it leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from entrepot.cli import main
from metrics.events import ignore
from proxy.bucket.objects import open_bucket
from proxy.oci.digest import Digest
from proxy.store.store import Store
from tests.bucket.test_uploads import AIM, HERE, drained, has, keep, uploading_to
from tests.support.bucket import BucketServer
from tests.support.mirror import Mirror


def gc(data: Path, url: str | None, *arguments: str) -> Result:
    environment = {"ENTREPOT_STORE_GRACE": "0s", **({} if url is None else {"ENTREPOT_STORE": url})}
    return CliRunner(env=environment).invoke(main, ["gc", "--data", str(data), "--bucket", *arguments])


async def prepared(data: Path, url: str) -> None:
    """Upload three blobs, of which one is removed then, and one is in no record."""
    store = await Store.open(data)
    async with open_bucket(url, ignore) as bucket:
        await store.catalog.aim(AIM)
        for body in (b"kept", b"removed"):
            await keep(store, body)
        async with uploading_to(store, bucket):
            await drained(store)
        await store.catalog.remove(HERE, Digest.of(b"removed"))

        async def stranger() -> AsyncIterator[bytes]:
            yield b"stranger"

        await bucket.put(Digest.of(b"stranger"), stranger(), size=8, media_type=None, public=False)
    await store.close()


async def left(url: str) -> list[bool]:
    async with open_bucket(url, ignore) as bucket:
        return await has(bucket, *(Digest.of(body) for body in (b"kept", b"removed", b"stranger")))


def test_a_dry_run_names_what_goes_and_the_run_takes_just_that(tmp_path: Path, url: str) -> None:
    asyncio.run(prepared(tmp_path, url))
    foreseen = gc(tmp_path, None, "--store", url, "--dry-run")
    assert foreseen.exit_code == 0, foreseen.output
    assert f"would go: {Digest.of(b'removed')}, 7 B" in foreseen.stdout
    assert asyncio.run(left(url)) == [True, True, True]
    done = gc(tmp_path, url, "--format", "json")
    document = json.loads(done.stdout)
    assert (document["objects"], document["deleted"], document["freed"], document["unknown"]) == (3, 1, 7, 1)
    assert document["deleted_objects"] == [{"event": "deleted", "digest": str(Digest.of(b"removed")), "bytes": 7}]
    assert asyncio.run(left(url)) == [True, False, True]


def test_without_a_bucket_the_command_says_what_to_configure(tmp_path: Path) -> None:
    async def made() -> None:
        await (await Store.open(tmp_path)).close()

    asyncio.run(made())
    result = gc(tmp_path, None)
    assert result.exit_code == 1
    assert "ENTREPOT_STORE" in result.stderr


def test_a_bucket_that_cannot_be_reached_is_told_in_words(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(prepared(tmp_path, url))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    result = gc(tmp_path, url)
    assert result.exit_code == 1
    assert "bucket cannot be reached" in result.stderr


@pytest.mark.slow
def test_a_running_mirror_does_it_for_the_command(tmp_path: Path, server: BucketServer, url: str) -> None:
    asyncio.run(prepared(tmp_path / "mirror" / "data", url))
    environment = {**server.environment, "ENTREPOT_STORE": url, "ENTREPOT_STORE_GRACE": "1s"}
    with Mirror(tmp_path / "mirror", {"docker.io": "http://127.0.0.1:9"}, env=environment) as mirror:
        time.sleep(1)  # the grace
        done = gc(mirror.data, None)
        assert done.exit_code == 0, done.output
        assert f"deleted: {Digest.of(b'removed')}, 7 B" in done.stdout
        assert "1 are in no record, and stay" in done.stdout
    assert asyncio.run(left(url)) == [True, False, True]
