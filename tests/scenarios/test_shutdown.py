"""SIGTERM: what was begun is finished, what cannot be finished in time is kept, nothing new is taken."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.scenarios.running import running
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror

MIB = 1 << 20
REPO = "library/drain"


async def knock_until_refused(mirror: Mirror) -> None:
    """Connect anew, over and over. Raises ClientError."""
    async with asyncio.timeout(10):
        while True:
            async with aiohttp.ClientSession() as stranger, stranger.get(f"{mirror.url}/v2/"):
                await asyncio.sleep(0.01)


async def test_a_running_download_is_finished_and_new_ones_are_refused(tmp_path: Path) -> None:
    data = blob(4 * MIB)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 3 * MIB
        mirror = Mirror(tmp_path, {"docker.io": upstream.url})
        async with running(mirror), aiohttp.ClientSession() as session:
            url = f"{mirror.url}/v2/{REPO}/blobs/{digest}"
            async with session.get(url) as answer:
                got = await answer.content.readexactly(MIB)
                mirror.program.signal(signal.SIGTERM)
                with pytest.raises(aiohttp.ClientError):
                    await knock_until_refused(mirror)
                upstream.go_on()
                assert got + await answer.content.read() == data
            await asyncio.to_thread(mirror.stop)  # raises unless it ended with 0


async def test_who_asks_again_and_again_for_the_end_does_not_make_it_a_failure(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        mirror = Mirror(tmp_path, {"docker.io": upstream.url})
        async with running(mirror):
            async with asyncio.timeout(30):
                while mirror.program.running:
                    for _ in range(20):
                        mirror.program.signal(signal.SIGTERM)
                    await asyncio.sleep(0)
            await asyncio.to_thread(mirror.stop)  # raises unless it ended with 0


async def test_what_cannot_be_finished_in_time_is_closed_short_and_goes_on_after_the_restart(tmp_path: Path) -> None:
    data = blob(4 * MIB)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 3 * MIB
        mirror = Mirror(tmp_path, {"docker.io": upstream.url}, config='drain_timeout = "200ms"\n')
        url = f"{mirror.url}/v2/{REPO}/blobs/{digest}"
        async with running(mirror), aiohttp.ClientSession() as session, session.get(url) as answer:
            await answer.content.readexactly(2 * MIB)
            await asyncio.to_thread(mirror.stop)
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
        upstream.go_on()
        async with running(mirror), aiohttp.ClientSession() as session:
            await upstream.wait_for(2, method="GET", contains=digest)
            async with session.get(url) as answer:
                assert await answer.read() == data
        assert upstream.select(method="GET", contains=digest)[1].range is not None
