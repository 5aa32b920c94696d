"""Pulls as the admin listener shows them, of clients whose requests go to several processes."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from aiohttp import ClientSession

from entrepot.mirror import mirror
from entrepot.pulls import telling_pulls
from metrics.events import RequestFinished
from metrics.prometheus import Metrics
from metrics.pulls.gathering import Gathering
from metrics.pulls.model import PullDetail, PullsView, Step
from metrics.pulls.summing import SHOWN_RUNNING
from metrics.pulls.tracking import Tracker
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.manifests import Child
from tests.admin.conftest import admin_of, config_for
from tests.metrics.pulling import blob as layer_of, manifest
from tests.scenarios.running import running, until
from tests.support.contents import OCI_LAYER, Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror
from tests.support.owners import answering

REPO = "library/app"
LAYER = "sha256:" + "2" * 64


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connections_to_each(where: Mirror, pids: list[int], stack: AsyncExitStack) -> list[Connection]:
    """Return a connection to each of the processes."""
    address = urlsplit(where.url)
    found: dict[int, Connection] = {}
    async with asyncio.timeout(60):
        while len(found) < len(pids):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            stack.callback(writer.close)
            port = writer.get_extra_info("sockname")[1]
            found[await accepted(address.port or 0, port, pids)] = reader, writer
    return list(found.values())


async def ask(connection: Connection, path: str) -> None:
    """Send a GET and read the answer."""
    reader, writer = connection
    head = f"GET /v2/{REPO}/{path} HTTP/1.1\r\nHost: m\r\nUser-Agent: containerd/1.6\r\nAccept: */*\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(30):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert answer.startswith("HTTP/1.1 200")
        length = re.search(r"(?i)content-length: (\d+)", answer)
        assert length is not None, answer
        await reader.readexactly(int(length[1]))


async def accepted(port: int, client_port: int, pids: list[int]) -> int:
    while True:
        try:
            return await asyncio.to_thread(answering, port, client_port, pids)
        except AssertionError:
            await asyncio.sleep(0.02)  # still in the listener's queue


def pulls(where: Mirror) -> dict[str, Any]:
    with urllib.request.urlopen(f"{where.admin}/api/pulls", timeout=10) as answer:
        return dict(json.load(answer))


def paths_of(image: Image) -> list[str]:
    digests = re.findall(r"sha256:[0-9a-f]{64}", image.body.decode())
    return ["manifests/1", *(f"blobs/{digest}" for digest in dict.fromkeys(digests))]


@pytest.mark.slow
async def test_requests_that_two_workers_answer_are_one_pull(tmp_path: Path) -> None:
    image = make_image([blob(5000), blob(70_000, seed=1), blob(10, seed=2)])
    async with FakeUpstream() as upstream:
        image.publish(upstream, REPO, "1")
        async with running(Mirror(tmp_path, {"docker.io": upstream.url}, flags=("--workers", "2"))) as where:
            status = await asyncio.to_thread(where.status)
            pids = [worker["pid"] for worker in status["workers"]]
            async with AsyncExitStack() as stack:
                both = await connections_to_each(where, pids, stack)
                for number, path in enumerate(paths_of(image)):
                    await ask(both[number % 2], path)
            await asyncio.to_thread(until, lambda: bool(pulls(where)["recent"]))
            (pull,) = pulls(where)["recent"]
            status = await asyncio.to_thread(where.status)
    assert (pull["image"], pull["agent"], pull["state"], pull["outcome"]) == (
        f"docker.io/{REPO}:1",
        "containerd",
        "done",
        "miss",
    )
    assert (pull["layers"], pull["had"]) == (3, 0)
    assert pull["sent"] == len(image.body) + sum(map(len, image.blobs))
    assert status["pulls"]["latency"]["count"] == 1


async def test_pulls_are_shown_each_with_its_requests_and_never_with_an_address(tmp_path: Path) -> None:
    gathering, metrics = Gathering(), Metrics(version="0")
    async with (
        FakeUpstream() as upstream,
        mirror(config_for(upstream, tmp_path / "data")) as ours,
        telling_pulls(gathering, ours.store.catalog.children, metrics, of_workers=False) as told,
        admin_of(ours) as session,
    ):
        ours.pulls, begun = told, asyncio.Event()
        told.changed = begun.set
        gathering.observe(manifest("1", "sha256:" + "0" * 64, time.monotonic(), client="203.0.113.9"))
        await asyncio.wait_for(begun.wait(), 30)
        await shown(session)


async def shown(session: ClientSession) -> None:
    async with session.get("/api/pulls") as response:
        body = await response.read()
    view = msgspec.json.decode(body, type=PullsView)
    (pull,) = view.running
    assert pull.image == "docker.io/library/one:1"
    async with session.get(f"/api/pulls/{pull.id}") as response:
        detail = await response.read()
    assert [bar.role for bar in msgspec.json.decode(detail, type=PullDetail).bars] == ["manifest"]
    assert b"203.0.113.9" not in body + detail
    async with session.get("/api/pulls/none") as response:
        assert response.status == 404
        assert (await response.json())["errors"][0]["code"] == "NOT_FOUND"


async def test_a_mirror_that_tells_no_pulls_says_so(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as upstream,
        mirror(config_for(upstream, tmp_path / "data")) as quiet,
        admin_of(quiet) as session,
        session.get("/api/pulls") as response,
    ):
        assert response.status == 404


class LateCatalog:
    """Fails at first, then has nothing, then what an image is made of."""

    def __init__(self) -> None:
        self.asked = 0

    async def children(self, digest: Digest) -> tuple[Child, ...]:
        self.asked += 1
        if self.asked == 1:
            raise OSError("the disk is gone")
        if self.asked == 2:
            return ()
        return (
            Child(Descriptor(OCI_LAYER, Digest(LAYER), 70), "layer", None, required=True),
            Child(Descriptor(OCI_LAYER, Digest("sha256:" + "3" * 64), 10), "layer", None, required=False),
        )


async def test_what_the_catalog_does_not_know_yet_is_looked_up_again() -> None:
    gathering, catalog = Gathering(), LateCatalog()
    async with telling_pulls(gathering, catalog.children, Metrics(version="0"), of_workers=False) as told:
        over = asyncio.Event()
        told.changed = lambda: over.set() if told.view().recent else None
        now = time.monotonic()
        for step in (manifest("1", "sha256:" + "1" * 64, now), *layer_of(LAYER, now, 0.1, sent=70)):
            gathering.observe(step)
        await asyncio.wait_for(over.wait(), 30)
        (pull,) = told.view().recent
    assert (pull.state, pull.layers, pull.layer_bytes) == ("done", 1, 70)  # P40: a foreign layer is nobody's to send


async def test_what_nobody_foresaw_costs_the_pulls_that_run_and_no_later_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gathering, catalog, take = Gathering(), LateCatalog(), Tracker.take

    def stumbling(tracker: Tracker, step: Step, now: float, teller: int = 0) -> None:
        take(tracker, step, now, teller)
        if isinstance(step, RequestFinished) and step.reference == "bad":
            raise KeyError(step.reference)

    monkeypatch.setattr(Tracker, "take", stumbling)
    async with telling_pulls(gathering, catalog.children, Metrics(version="0"), of_workers=False) as told:
        running: asyncio.Queue[int] = asyncio.Queue()
        told.changed = lambda: running.put_nowait(len(told))
        for name, left in (("1", 1), ("bad", 0), ("2", 1)):
            gathering.observe(manifest(name, f"sha256:{len(name):064x}", time.monotonic(), client=name))
            assert await asyncio.wait_for(running.get(), 30) == left
    assert [record.message.partition(",")[0] for record in caplog.records if record.exc_info] == [
        "pulls could not be told from requests"
    ]


async def test_more_pulls_than_are_told_are_counted() -> None:
    gathering, catalog = Gathering(), LateCatalog()
    async with telling_pulls(gathering, catalog.children, Metrics(version="0"), of_workers=False) as told:
        begun = asyncio.Event()
        told.changed = lambda: begun.set() if len(told) == SHOWN_RUNNING + 3 else None
        for number in range(SHOWN_RUNNING + 3):
            digest = f"sha256:{number:064x}"
            gathering.observe(manifest("1", digest, time.monotonic(), client=f"10.0.1.{number}"))
        await asyncio.wait_for(begun.wait(), 30)
        view = told.view()
    assert (len(view.running), view.more_running) == (SHOWN_RUNNING, 3)
