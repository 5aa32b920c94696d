"""kill -9 at random points of fills and commits: nothing wrong is ever stored, nothing leaks, nothing starts over."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from proxy.oci.digest import Digest
from tests.scenarios.running import running, until
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror

MIB = 1 << 20
REPO = "library/kill"
SIZES = [1000, 60_000, MIB, MIB + 1, 3 * MIB, 6 * MIB, 9 * MIB]


async def disturb(mirror: Mirror, digests: list[Digest], until_killed: asyncio.Event) -> None:
    """Ask for everything, over and over, and do not mind what comes back."""
    async with aiohttp.ClientSession() as session:

        async def client(digest: Digest) -> None:
            while not until_killed.is_set():
                try:
                    async with session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}") as answer:
                        async for _ in answer.content.iter_any():
                            pass
                except (aiohttp.ClientError, OSError):
                    await asyncio.sleep(0.02)

        await asyncio.gather(*(client(digest) for digest in digests))


async def fetched(mirror: Mirror, digests: list[Digest]) -> None:
    """Get everything whole; check every byte."""
    async with aiohttp.ClientSession() as session:
        for digest in digests:
            async with session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}") as answer:
                assert answer.status == 200, await answer.text()
                assert hashlib.sha256(await answer.read()).hexdigest() == digest.hex


def stored_wrongly(data: Path) -> list[Path]:
    """Return the stored blobs whose bytes do not match their name."""
    files = [path for path in (data / "blobs" / "sha256").glob("*/*") if path.is_file()]
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


async def rounds(tmp_path: Path, count: int, seed: int) -> None:
    random_ = random.Random(seed)
    mirror_folder = tmp_path / "mirror"
    async with FakeUpstream() as upstream:
        mirror = Mirror(mirror_folder, {"docker.io": upstream.url})
        all_digests: list[Digest] = []
        for number in range(count):
            digests = [upstream.add_blob(REPO, blob(size, seed=number * 100 + i)) for i, size in enumerate(SIZES)]
            all_digests += digests
            upstream.rate = random_.choice([4 * MIB, 16 * MIB, 64 * MIB])
            async with running(mirror):
                killed = asyncio.Event()
                clients = asyncio.create_task(disturb(mirror, digests, killed))
                await asyncio.sleep(random_.uniform(0.02, 0.6))
                await asyncio.to_thread(mirror.kill)
                killed.set()
                await clients
            assert not stored_wrongly(mirror.data)
        upstream.rate = None
        async with running(mirror):
            asked = len(upstream.requests)
            await fetched(mirror, all_digests)
            await asyncio.to_thread(until, lambda: mirror.status()["store"]["spools"] == 0)  # the last commit ends
            resumed = [request.range for request in upstream.requests[asked:] if request.range]
            print(f"{len(all_digests)} blobs, {len(resumed)} fills resumed")
        assert not any(path for path in (mirror.data / "ingest").iterdir() if path.suffix != ".lock")
        assert not stored_wrongly(mirror.data)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "entrepot", "verify", "--data", str(mirror.data), "--format", "json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stdout + done.stderr


async def test_killed_at_random_points_it_never_stores_or_leaks_anything_wrong(tmp_path: Path) -> None:
    await rounds(tmp_path, 3, seed=random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_killed_many_times_it_never_stores_or_leaks_anything_wrong(tmp_path: Path) -> None:
    await rounds(tmp_path, 60, seed=random.randrange(1 << 30))


async def test_a_killed_fill_goes_on_where_it_was(tmp_path: Path) -> None:
    data = blob(16 * MIB)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 12 * MIB
        mirror = Mirror(tmp_path, {"docker.io": upstream.url})
        async with (
            running(mirror),
            aiohttp.ClientSession() as session,
            session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}") as answer,
        ):
            await answer.content.readexactly(11 * MIB)
            await asyncio.to_thread(mirror.kill)
        upstream.go_on()
        async with running(mirror):
            await upstream.wait_for(2, method="GET", contains=digest)
            await fetched(mirror, [digest])
        resumed = upstream.select(method="GET", contains=digest)
        assert len(resumed) == 2  # taken up without being asked, and only once
        first, _, _ = (resumed[1].range or "").removeprefix("bytes=").partition("-")
        assert int(first) >= 11 * MIB
