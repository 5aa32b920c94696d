"""Several workers on one data folder: one download for all of them, whatever becomes of the one that leads it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from entrepot.answering import bound
from entrepot.config import Address, Config, UpstreamConfig
from entrepot.mirror import rebuildable
from entrepot.workers import crew
from entrepot.workers.wire import Channel
from proxy.oci.digest import Digest
from tests.scenarios.running import running, until
from tests.scenarios.test_kills import stored_wrongly
from tests.support.contents import blob, make_image
from tests.support.deaf import Deaf
from tests.support.fake_upstream import FakeUpstream
from tests.support.mirror import Mirror, upstream_table
from tests.support.owners import answering, leading

MIB = 1 << 20
REPO = "library/crew"
SIZE = 12 * MIB


@dataclass
class Pull:
    """One client's download, and which worker answers it."""

    pid: int
    body: asyncio.Task[bytes]


def of_two(tmp_path: Path, upstream: FakeUpstream) -> Mirror:
    return Mirror(tmp_path, {"docker.io": upstream.url}, flags=("--workers", "2"))


async def workers_of(mirror: Mirror) -> list[int]:
    status = await asyncio.to_thread(mirror.status)
    return [worker["pid"] for worker in status["workers"]]


async def metrics_of(mirror: Mirror) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{mirror.admin}/metrics") as answer:
        return await answer.text()


async def pull(mirror: Mirror, digest: Digest, pids: list[int]) -> Pull:
    """Begin a download on a connection of its own; the body is short when the connection ends early."""
    where = urlsplit(mirror.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(f"GET /v2/{REPO}/blobs/{digest} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode())

    async def read() -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            return await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            return b""
        finally:
            writer.close()

    body = asyncio.create_task(read())
    port = writer.get_extra_info("sockname")[1]
    async with asyncio.timeout(30):
        while True:
            try:
                return Pull(await asyncio.to_thread(answering, where.port or 0, port, pids), body)
            except AssertionError:
                await asyncio.sleep(0.02)  # still in the listener's queue


async def pulls_at_both(mirror: Mirror, digest: Digest, pids: list[int]) -> list[Pull]:
    """Begin downloads until each worker answers at least two."""
    pulls: list[Pull] = []
    while min([*([one.pid for one in pulls].count(pid) for pid in pids)]) < 2:
        assert len(pulls) < 200, "all connections go to one worker"
        pulls.append(await pull(mirror, digest, pids))
    return pulls


@asynccontextmanager
async def half_way(
    tmp_path: Path, upstream: FakeUpstream, data: bytes
) -> AsyncIterator[tuple[Mirror, Digest, list[Pull], int]]:
    """Give a mirror of two workers that has half of `data`, its digest, downloads at both, and who leads the fill."""
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 6 * MIB
    async with running(of_two(tmp_path, upstream)) as mirror:
        pids = await workers_of(mirror)
        pulls = await pulls_at_both(mirror, digest, pids)
        await asyncio.wait_for(upstream.stalled.wait(), 30)
        await asyncio.to_thread(until, lambda: mirror.status()["fills"][0]["received"] == 6 * MIB)
        yield mirror, digest, pulls, await asyncio.to_thread(leading, mirror.data, digest, pids)


async def test_two_workers_make_one_download_of_a_blob(tmp_path: Path) -> None:
    data = blob(SIZE)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 6 * MIB
        async with running(of_two(tmp_path, upstream)) as mirror:
            pulls = await pulls_at_both(mirror, digest, await workers_of(mirror))
            await asyncio.wait_for(upstream.stalled.wait(), 30)
            await asyncio.to_thread(until, lambda: mirror.status()["fills"][0]["received"] == 6 * MIB)
            (fill,) = (await asyncio.to_thread(mirror.status))["fills"]
            assert fill["readers"] == len(pulls)
            assert f"\nentrepot_requests_in_progress {len(pulls)}.0\n" in await metrics_of(mirror)
            upstream.go_on()
            async with asyncio.timeout(60):
                assert {hashlib.sha256(await one.body).hexdigest() for one in pulls} == {digest.hex}
            assert upstream.count(method="GET", contains=digest) == 1
            status = await asyncio.to_thread(mirror.status)
            assert status["totals"]["miss"] == 1
            assert status["totals"]["joined"] == len(pulls) - 1


async def test_small_blobs_and_manifests_too_are_shared(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        digests = [upstream.add_blob(REPO, blob(20_000, seed=number)) for number in range(8)]
        async with running(of_two(tmp_path, upstream)) as mirror:
            pids = await workers_of(mirror)
            for digest in digests:
                upstream.stall_at = 10_000  # nobody is answered before all have asked
                pulls = [await pull(mirror, digest, pids) for _ in range(4)]
                upstream.go_on()
                assert [hashlib.sha256(await one.body).hexdigest() for one in pulls] == [digest.hex] * 4
            assert [upstream.count(method="GET", contains=digest) for digest in digests] == [1] * 8


async def test_a_worker_killed_while_it_leads_is_noticed_by_no_reader_of_the_other(tmp_path: Path) -> None:
    data = blob(SIZE)
    async with FakeUpstream() as upstream, half_way(tmp_path, upstream, data) as (mirror, digest, pulls, leader):
        os.kill(leader, signal.SIGKILL)
        upstream.go_on()
        async with asyncio.timeout(60):
            for one in pulls:
                body = await one.body
                assert body == (data[: len(body)] if one.pid == leader else data)
        first, *others = upstream.select(method="GET", contains=digest)
        assert first.range is None
        assert [other.range for other in others] == [f"bytes={6 * MIB}-"]
        await asyncio.to_thread(until, lambda: answered_by_two(mirror, leader))
        assert not await asyncio.to_thread(stored_wrongly, mirror.data)
        await asyncio.to_thread(until, lambda: mirror.status()["store"]["spools"] == 0)
        status = await asyncio.to_thread(mirror.status)
        assert sum(worker["restarts"] for worker in status["workers"]) == 1
        # What the dead worker had counted is not lost with it, beyond the last two seconds.
        assert sum(status["totals"].values()) >= len([one for one in pulls if one.pid != leader])


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def answered_by_two(mirror: Mirror, gone: int) -> bool:
    pids = {worker["pid"] for worker in mirror.status()["workers"] if worker["answers"]}
    return len(pids) == 2 and gone not in pids


async def stopped_leader(tmp_path: Path, seconds: float) -> None:
    """Stop the leading worker in mid-fill for so long; its peers' readers get everything in the meantime."""
    data = blob(SIZE)
    async with FakeUpstream() as upstream, half_way(tmp_path, upstream, data) as (mirror, digest, pulls, leader):
        os.kill(leader, signal.SIGSTOP)
        try:
            stopped = asyncio.get_running_loop().time()
            async with asyncio.timeout(60):
                await upstream.wait_for(2, method="GET", contains=digest, seconds=40)  # a peer takes over
                upstream.go_on()
                for one in pulls:
                    if one.pid != leader:
                        assert await one.body == data
            assert upstream.select(method="GET", contains=digest)[1].range == f"bytes={6 * MIB}-"
            await asyncio.to_thread(until, lambda: mirror.status()["state"] == "degraded")
            (reason,) = (await asyncio.to_thread(mirror.status))["reasons"]
            assert f"(pid {leader}) does not answer" in reason
            left = seconds - (asyncio.get_running_loop().time() - stopped)
            await asyncio.sleep(max(0.0, left))
        finally:
            os.kill(leader, signal.SIGCONT)
        async with asyncio.timeout(30):
            for one in pulls:
                if one.pid == leader:
                    body = await one.body
                    assert body == data[: len(body)]
        assert upstream.count(method="GET", contains=digest) <= 3
        async with aiohttp.ClientSession() as session:
            for _ in range(8):
                async with session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}") as answer:
                    assert await answer.read() == data
        assert not await asyncio.to_thread(stored_wrongly, mirror.data)


async def test_a_worker_that_stands_still_while_it_leads_is_noticed_by_no_reader_of_the_other(tmp_path: Path) -> None:
    await stopped_leader(tmp_path, 0)


@pytest.mark.slow
async def test_a_worker_that_stands_still_for_a_minute_does_no_harm_when_it_wakes(tmp_path: Path) -> None:
    await stopped_leader(tmp_path, 60)


async def test_a_worker_that_stands_still_for_very_long_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data=tmp_path, upstreams=(UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),), workers=2)
    died = asyncio.Event()
    async with rebuildable(config) as rebuilding:
        with bound(Address("127.0.0.1", 0)) as sockets:
            async with crew.working(config, sockets, rebuilding.mirror.metrics, Deaf(), died.set) as workers:
                stopped, other = workers.views()
                monkeypatch.setattr(crew, "HUNG_SECONDS", 5.5)  # they report every two, and may take long to start
                monkeypatch.setattr(crew, "LAST_SECONDS", 1.5)
                await workers.refresh()  # what comes now is waited for no longer than that
                os.kill(stopped.pid, signal.SIGSTOP)
                await asyncio.wait_for(died.wait(), 30)
                async with asyncio.timeout(30):
                    while workers.views()[0].pid == stopped.pid:
                        await workers.refresh()
                assert [view.restarts for view in workers.views()] == [1, 0]
                assert workers.views()[1].pid == other.pid


async def test_a_worker_that_hangs_after_its_last_word_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LEAVING_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec("sleep", "60")
    worker = crew.Worker(1, process, await Channel.open(ours))
    theirs.close()
    async with asyncio.timeout(30):
        await worker.listen(Deaf())
        assert await worker.ended() == -signal.SIGKILL
    await worker.channel.aclose()


async def test_what_one_worker_learns_of_a_tag_the_other_serves(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        old, new = make_image([blob(1000)]), make_image([blob(2000)])
        old.publish(upstream, REPO, "1")
        async with running(of_two(tmp_path, upstream)) as mirror:
            assert await digests_of_tag(mirror) == {old.digest}
            new.publish(upstream, REPO, "1")
            assert await digests_of_tag(mirror) == {old.digest}
            ask_anew = {"Cache-Control": "no-cache"}  # asked of the upstream once a second at most
            path = f"/v2/{REPO}/manifests/1"
            await asyncio.to_thread(until, lambda: mirror.request(path, "GET", ask_anew)[1] == new.body)
            assert await digests_of_tag(mirror) == {new.digest}
            host = urlsplit(upstream.url).netloc  # what containerd calls an upstream under an alias (P39)
            assert await asyncio.to_thread(mirror.request, f"{path}?ns={host}") == (200, new.body)
            assert (await asyncio.to_thread(mirror.request, f"{path}?ns=elsewhere.example"))[0] == 404


async def digests_of_tag(mirror: Mirror) -> set[str]:
    """Ask on many connections, so that every worker answers some."""

    async def ask() -> str:
        async with aiohttp.ClientSession() as session, session.head(f"{mirror.url}/v2/{REPO}/manifests/1") as answer:
            return answer.headers["Docker-Content-Digest"]

    return set(await asyncio.gather(*(ask() for _ in range(24))))


async def test_numbers_of_all_workers_are_exposed_together_and_what_a_client_asks_both_is_one_pull(
    tmp_path: Path,
) -> None:
    image = make_image([blob(1000)])
    async with FakeUpstream() as upstream, running(of_two(tmp_path, upstream)) as mirror:
        image.publish(upstream, REPO, "1")
        assert await digests_of_tag(mirror) == {image.digest}
        for _ in range(40):
            async with aiohttp.ClientSession() as session, session.get(f"{mirror.url}/v2/"):
                pass
        text = await metrics_of(mirror)
        assert 'entrepot_requests_total{kind="ping",method="GET",status="200"} 40.0' in text
        assert 'entrepot_worker_up{worker="1"} 1.0' in text
        assert 'entrepot_worker_up{worker="2"} 1.0' in text
        assert "entrepot_requests_in_progress 0.0" in text
        for number in (1, 2):
            (memory,) = re.findall(f'^entrepot_worker_resident_memory_bytes{{worker="{number}"}} (.*)$', text, re.M)
            (cpu,) = re.findall(f'^entrepot_worker_cpu_seconds_total{{worker="{number}"}} (.*)$', text, re.M)
            assert float(memory) > 10 * MIB
            assert 0 < float(cpu) < 60
        await asyncio.to_thread(until, lambda: bool(pulls_of(mirror)))
        assert [(one["image"], one["layers"]) for one in pulls_of(mirror)] == [(f"docker.io/{REPO}:1", 1)]


def pulls_of(mirror: Mirror) -> list[dict[str, Any]]:
    """Return the pulls that run and those that ended."""
    with urllib.request.urlopen(f"{mirror.admin}/api/pulls", timeout=10) as answer:
        shown = json.load(answer)
    return [*shown["running"], *shown["recent"]]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hang_up_reads_the_configuration_again_and_cuts_nobody_off(tmp_path: Path, workers: int) -> None:
    data = blob(SIZE)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 6 * MIB
        table = upstream_table("docker.io", upstream.url)
        mirror = Mirror(tmp_path, {}, config=table, flags=("--workers", str(workers)))
        async with running(mirror), aiohttp.ClientSession() as session:
            url = f"{mirror.url}/v2/{REPO}/blobs/{digest}"
            async with session.get(url) as answer:
                begun = await answer.content.readexactly(MIB)
                (mirror.folder / "entrepot.toml").write_text(table + 'deny = ["library/*"]\n')
                mirror.program.signal(signal.SIGHUP)
                await asyncio.to_thread(until, lambda: mirror.request(f"/v2/{REPO}/blobs/{digest}", "HEAD")[0] == 404)
                upstream.go_on()
                assert begun + await answer.content.read() == data
            (mirror.folder / "entrepot.toml").write_text("nonsense = 1\n")
            mirror.program.signal(signal.SIGHUP)
            log = mirror.folder / "mirror.log"
            await asyncio.to_thread(until, lambda: "the old one stays" in log.read_text())
            assert (await asyncio.to_thread(mirror.request, "/v2/"))[0] == 200
        assert upstream.count(method="GET", contains=digest) == 1


async def test_workers_end_with_their_supervisor_and_the_next_one_takes_over(tmp_path: Path) -> None:
    data = blob(SIZE)
    async with FakeUpstream() as upstream:
        digest = upstream.add_blob(REPO, data)
        upstream.stall_at = 6 * MIB
        mirror = of_two(tmp_path, upstream)
        async with running(mirror):
            pids = await workers_of(mirror)
            one = await pull(mirror, digest, pids)
            await asyncio.wait_for(upstream.stalled.wait(), 30)
            await asyncio.to_thread(mirror.kill)
            one.body.cancel()
        upstream.go_on()
        async with running(mirror), aiohttp.ClientSession() as session:
            await asyncio.to_thread(until, lambda: not alive(pids))  # init may take its time to reap them
            async with session.get(f"{mirror.url}/v2/{REPO}/blobs/{digest}") as answer:
                assert await answer.read() == data


async def test_a_worker_that_cannot_start_ends_the_mirror_with_its_reason(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        table = upstream_table("docker.io", upstream.url) + '[access]\nmode = "token"\ntoken_file = "nowhere"\n'
        mirror = Mirror(tmp_path, {}, config=table, flags=("--workers", "2"))
        with pytest.raises(Exception, match="nowhere"):
            await asyncio.to_thread(mirror.start)
