"""A bucket that answers and then gives or takes its time: whoever waits for it is let go while others can still serve.

The server is made up, as no real one can be told to drip.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from metrics.events import ignore
from proxy.bucket import answers, objects
from proxy.bucket.objects import Bucket, open_bucket
from proxy.bucket.source import BucketSource
from proxy.handlers import FIRST_BYTE_SECONDS
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository

HERE = Repository("docker.io", "library/alpine")
DIGEST = Digest.of(b"whatever")
SIZE = 3 << 20
HEAD = (
    b'HTTP/1.1 200 OK\r\nETag: "x"\r\nLast-Modified: Mon, 23 Nov 2026 16:00:00 GMT\r\n'
    b"Content-Length: %d\r\nConnection: close\r\n\r\n"
)


@dataclass
class Slow:
    """An S3 server that gives `first` bytes of an object of `size` at once, and then nothing; PUTs take `seconds`."""

    first: int = 0
    size: int = SIZE
    seconds: float = 0.0
    put: list[int] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"PUT"):
                length = re.search(rb"content-length: (\d+)", head.lower())
                assert length is not None
                self.put.append(len(await reader.readexactly(int(length[1]))))
                await asyncio.sleep(self.seconds)
                writer.write(HEAD % 0)
            elif head.startswith(b"HEAD"):
                writer.write(HEAD % self.size)
            else:
                writer.write(HEAD % self.size + bytes(self.first))
                await reader.read()
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    slow = Slow()
    server = await asyncio.start_server(slow.answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield slow
    server.close()


async def test_a_body_that_does_not_come_is_given_up_while_another_can_still_serve(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:  # P26
    assert objects.ANSWER_SECONDS + answers.BEGIN_SECONDS < FIRST_BYTE_SECONDS
    monkeypatch.setattr(answers, "BEGIN_SECONDS", 0.2)
    for first in (0, 600_000):
        slow.first = first
        async with open_bucket("s3://bucket/prefix", ignore) as bucket:
            stream = await BucketSource(bucket).open_blob(HERE, DIGEST)
            begun = time.monotonic()
            with pytest.raises(Unavailable, match="did not answer in time"):
                _ = [chunk async for chunk in stream]
            assert time.monotonic() - begun < 4
            assert bucket.failing is not None
            await stream.aclose()


async def test_a_manifest_that_drips_is_not_waited_for(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:  # P26
    assert objects.ANSWER_SECONDS + objects.READ_SECONDS <= FIRST_BYTE_SECONDS
    monkeypatch.setattr(objects, "READ_SECONDS", 0.2)
    slow.size, slow.first = 1000, 999
    async with open_bucket("s3://bucket/prefix", ignore) as bucket:
        with pytest.raises(Unavailable, match="too slowly"):
            await BucketSource(bucket).manifest(HERE, DIGEST)


async def upload(bucket: Bucket, size: int) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield bytes(size)

    await bucket.put(DIGEST, content(), size=size, media_type=None, public=False)


async def test_a_slow_way_up_is_waited_for_and_keeps_nobody_from_reading(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.bucket.objects.IDLE_SECONDS", 0.2)
    slow.seconds = 0.6
    async with open_bucket("s3://bucket/prefix", ignore) as bucket:
        await upload(bucket, SIZE)
    assert slow.put == [SIZE]
    monkeypatch.setattr("proxy.bucket.objects.PART_SECONDS", 0.2)
    async with open_bucket("s3://bucket/prefix", ignore) as bucket:
        with pytest.raises(Unavailable, match="did not answer in time"):
            await upload(bucket, SIZE)
        assert bucket.failing is None
