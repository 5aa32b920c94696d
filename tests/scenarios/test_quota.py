"""A mirror of two workers that is given ten times its quota: what the disk holds, and what is served afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.scenarios.running import running, until
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror

REPO = "library/crowd"
KIB = 1 << 10
MANIFESTS = 64 * KIB
"""Manifests are too small to be refused: what those of one run may come to beyond the watermark."""


@dataclass
class Load:
    """What is pulled, by so many `clients`: `count` images of a layer of `layer` bytes and one that eight share."""

    clients: int
    count: int
    layer: int
    images: list[Image] = field(default_factory=list)

    def publish(self, upstream: FakeUpstream) -> None:
        for number in range(self.count):
            layers = [blob(self.layer, number), blob(self.layer, 10_000 + number // 8)]
            self.images.append(make_image(layers))
            self.images[-1].publish(upstream, REPO, f"v{number}")

    @property
    def bytes(self) -> int:
        return sum(map(len, {data for image in self.images for data in image.blobs}))


def entrepot(mirror: Mirror, *arguments: str) -> Any:
    """Run a command beside the mirror and return its document."""
    argv = [sys.executable, "-m", "entrepot", *arguments, "--data", str(mirror.data), "--format", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout)


def on_disk(data: Path) -> int:
    """Return what content takes of the disk: stored, being written, on its way out."""
    total = 0
    for folder in ("blobs", "ingest", "trash"):
        for path, _, names in os.walk(data / folder):
            for name in names:
                if not name.endswith((".state", ".lock")):
                    with contextlib.suppress(FileNotFoundError):
                        total += os.stat(os.path.join(path, name)).st_size
    return total


@asynccontextmanager
async def watched(data: Path) -> AsyncIterator[list[int]]:
    """Look at the disk again and again; the first entry of what is given becomes the most that was there."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], on_disk(data))

    looking = asyncio.create_task(asyncio.to_thread(look))
    try:
        yield most
    finally:
        ended.set()
        await looking


async def pull(session: aiohttp.ClientSession, mirror: Mirror, image: Image, reference: str) -> None:
    """Pull as a client does: whoever got the manifest gets every blob of it (P27). Only want of room is waited for."""
    async with session.get(f"{mirror.url}/v2/{REPO}/manifests/{reference}") as answer:
        assert (answer.status, await answer.read()) == (200, image.body)
    for data in image.blobs:
        await get_blob(session, f"{mirror.url}/v2/{REPO}/blobs/sha256:{hashlib.sha256(data).hexdigest()}", data)


async def get_blob(session: aiohttp.ClientSession, url: str, data: bytes) -> None:
    said = b""
    for _ in range(20):
        try:
            async with session.get(url) as answer:
                said = await answer.read()
                if answer.status == 200 and said == data:
                    return
                assert answer.status in (200, 503), (answer.status, said)
        except aiohttp.ClientError:
            pass  # a worker was killed
        await asyncio.sleep(0.05)
    raise AssertionError(said[:500])


async def crowd(mirror: Mirror, load: Load, *, killing: bool = False) -> None:
    """Pull all images, each at least once, by several clients, who also come back to what others have pulled."""
    waiting = list(range(1, load.count))
    chance = random.Random(7)

    async def client() -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while waiting:
                number = waiting.pop(0)
                again = chance.sample(range(max(0, number - 20), number), int(number % 3 == 0))
                for one in (number, *again):
                    while True:
                        try:
                            await pull(session, mirror, load.images[one], f"v{one}")
                            break
                        except aiohttp.ClientError:
                            if not killing:
                                raise

    async def kill() -> None:
        while waiting:
            await asyncio.sleep(2)
            pids = [worker["pid"] for worker in (await asyncio.to_thread(mirror.status))["workers"]]
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(client())
        if killing:
            group.create_task(kill())


async def listed_is_served(mirror: Mirror, load: Load, upstream: FakeUpstream) -> set[str]:
    """Cut the upstream off, pull whatever `ls` says can be served, and return the references."""
    listed = await asyncio.to_thread(entrepot, mirror, "ls", "*")
    await upstream.stop_listening()
    upstream.cut_connections()
    by_digest = {str(image.digest): image for image in load.images}
    served = {}
    for line in listed:
        if line["state"] in ("complete", "servable"):
            served[line["reference"]] = by_digest[line["digest"]]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for reference, image in served.items():
            await pull(session, mirror, image, reference.rpartition(":")[2])
    return set(served)


async def pulled_through(folder: Path, load: Load, quota: int, *, least: int = 1, killing: bool = False) -> None:
    """`least`: how many images are whole at the end, for whatever order the clients came in."""
    async with FakeUpstream() as upstream:
        load.publish(upstream)
        assert load.bytes >= 10 * quota
        mirror = Mirror(folder, {"docker.io": upstream.url}, flags=("--workers", "2", "--quota", str(quota)))
        async with running(mirror):
            async with aiohttp.ClientSession() as session:
                await pull(session, mirror, load.images[0], "v0")
            assert (await asyncio.to_thread(entrepot, mirror, "pin", f"{REPO}:v0"))["pinned"]
            async with watched(mirror.data) as most:
                await crowd(mirror, load, killing=killing)
            assert most[0] <= quota + load.clients * load.layer + MANIFESTS
            space = (await asyncio.to_thread(mirror.status))["space"]
            assert space["stored"] <= quota + MANIFESTS
            await asyncio.to_thread(until, lambda: on_disk(mirror.data) <= quota + MANIFESTS)
            served = await listed_is_served(mirror, load, upstream)
            assert f"docker.io/{REPO}:v0" in served
            assert len(served) >= least


async def test_ten_times_the_quota_goes_through_two_workers_and_what_is_listed_is_served_alone(tmp_path: Path) -> None:
    await pulled_through(tmp_path, Load(3, 48, 128 * KIB), 680 * KIB)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_so_it_does_while_workers_are_killed(tmp_path: Path) -> None:
    await pulled_through(tmp_path, Load(6, 300, 512 * KIB), 16 << 20, least=5, killing=True)
