"""Fills whose sources break, lie, drip or contradict each other: what readers see of it, and who is asked next."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from metrics.events import FillResumed, VerificationFailed
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository
from tests.cache.lab import ALPINE, HUB, LIMITS, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

MIB = 1 << 20
REPO = "library/alpine"


async def test_after_wrong_bytes_the_next_source_serves_it(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt = {MIB: 1}
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        status, got, whole = await lab.get_short(lab.blob_url(digest))
        assert (status, whole) == (200, False)
        assert got != data
        await lab.committed()
        assert (await lab.get(lab.blob_url(digest)))[2] == data
        ranged, _, _ = await lab.get(lab.blob_url(digest), {"Range": "bytes=100-"})
        assert ranged == 503  # for a minute, although the blob is here now
        assert upstream.count(method="GET", contains="/blobs/") == 1


async def test_a_small_blob_moves_on_to_the_next_source_unseen(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(100_000)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt = {0: 1}
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_corruption_after_a_change_of_source_blames_nobody(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        other.corrupt = {3 * MIB: 1}
        other.stall_at = 3 * MIB + 4096
        pull = asyncio.create_task(lab.get_short(lab.blob_url(digest)))
        await asyncio.wait_for(other.stalled.wait(), 30)
        other.corrupt, upstream.die_at = {}, None
        other.go_on()
        status, got, whole = await pull
        assert (status, whole) == (200, False)
        assert got == data[: len(got)] or len(got) > 3 * MIB
        await lab.committed()
        assert {event.source for event in lab.of(VerificationFailed)} == {""}
        assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_an_upstream_that_dies_and_comes_back_is_resumed_unseen(lab: Lab, upstream: FakeUpstream) -> None:  # P28
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.die_at = 2 * MIB
    pull = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.died.wait(), 30)
    await upstream.stop_listening()
    upstream.cut_connections()
    await asyncio.sleep(0.5)
    await upstream.listen_again()
    status, _, body = await pull
    assert (status, body) == (200, data)
    resumed = upstream.select(method="GET", contains="/blobs/")[-1]
    assert resumed.range is not None
    assert lab.of(FillResumed)


async def test_an_upstream_that_stays_dead_closes_short_and_fails_the_retry_at_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P28
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.die_at, upstream.die_once = 2 * MIB, False
    limits = replace(LIMITS, quiet=3, quiet_most=3)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=3, limits=limits) as lab:
        pull = asyncio.create_task(lab.get_short(lab.blob_url(digest)))
        await asyncio.wait_for(upstream.died.wait(), 30)
        await upstream.stop_listening()
        upstream.cut_connections()
        status, got, whole = await pull
        assert (status, whole) == (200, False)
        assert got == data[: len(got)]
        async with asyncio.timeout(2.9):
            retry, _, _ = await lab.get(lab.blob_url(digest), {"Range": f"bytes={len(got)}-"})
        assert retry == 503
        await upstream.listen_again()
        upstream.die_at = None
        await asyncio.sleep(limits.quiet)
        assert (await lab.get(lab.blob_url(digest)))[2] == data
        resumed = upstream.select(method="GET", contains="/blobs/")[-1]
        assert resumed.range is not None  # the prefix was kept


async def test_a_kept_prefix_without_an_upstream_is_an_error_and_not_a_short_body(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P30
    digest = upstream.add_blob(REPO, blob(4 * MIB))
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=0) as lab:
        assert not (await lab.get_short(lab.blob_url(digest)))[2]
        await upstream.stop_listening()
        upstream.cut_connections()
        assert (await lab.get(lab.blob_url(digest)))[0] == 503


async def test_the_next_source_goes_on_where_the_first_died(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        assert (await lab.get(lab.blob_url(digest)))[2] == data
        (resumed,) = other.select(method="GET", contains="/blobs/")
        assert resumed.range is not None


async def test_a_fill_goes_on_after_a_restart_without_being_asked(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 2 * MIB
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        filling = asyncio.create_task(lab.cache.ensure_blob(ALPINE, digest))
        await asyncio.wait_for(upstream.stalled.wait(), 30)
        async with lab.http.get(lab.blob_url(digest)) as answer:
            await answer.content.readexactly(3 * MIB // 2)
    with pytest.raises(Unavailable):
        await filling
    upstream.go_on()
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        await lab.committed()
        assert (await lab.get(lab.blob_url(digest)))[2] == data
        resumed = upstream.select(method="GET", contains="/blobs/")[-1]
        assert resumed.range is not None
        first, _, _ = resumed.range.removeprefix("bytes=").partition("-")
        assert int(first) > MIB
        assert (await lab.store.stats()).spools == 0


async def test_a_size_that_a_manifest_belies_is_not_believed(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(2 * MIB)
    image = make_image([data])
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        image.publish(upstream, REPO, "1")
        image.publish(other, REPO, "1")
        await lab.get(lab.manifest_url("1"))
        upstream.blobs[REPO][Digest.of(data)] = data + b"more"
        assert (await lab.get(lab.blob_url(Digest.of(data))))[2] == data


async def test_a_wrong_size_that_was_believed_once_is_forgotten(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=0.5) as lab:
        upstream.blobs[REPO][digest] = data + blob(MIB)
        upstream.die_at, upstream.die_once = 2 * MIB, False
        assert not (await lab.get_short(lab.blob_url(digest)))[2]
        upstream.die_at, upstream.blobs[REPO][digest] = None, data
        await asyncio.sleep(LIMITS.quiet)
        assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_sources_that_contradict_each_other_start_it_over(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.blobs[REPO][digest] = data + blob(MIB)
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        async with asyncio.timeout(30):
            assert not (await lab.get_short(lab.blob_url(digest)))[2]
            assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_a_slow_main_host_is_waited_for_when_the_alternate_cannot_help(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.cache.supply.HEDGE_SECONDS", 0.1)
    data = blob(2000)
    digest = upstream.add_blob(REPO, data)
    upstream.delay_headers = 0.4
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        assert (await lab.get(lab.blob_url(digest)))[2] == data
        assert other.count(contains="/blobs/") == 1


async def test_a_source_that_drips_is_left_for_another(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr("proxy.cache.supply.WINDOW", 0.3)
    data = blob(2000)
    digest = upstream.add_blob(REPO, data)
    upstream.rate = 50
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        async with asyncio.timeout(30):
            assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_broken_framing_in_mid_body_is_a_break_like_any_other(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (2 * MIB) + data[: 2 * MIB])
        writer.write(b"\r\nZZZ\r\n")
        await writer.drain()

    server = await asyncio.start_server(broken, "127.0.0.1", 0)
    first = FakeUpstream()
    first.port = server.sockets[0].getsockname()[1]
    limits = replace(LIMITS, stall=600)  # it is the end of the connection that tells
    async with server, laboratory(tmp_path / "data", {HUB: [first, upstream]}, limits=limits) as lab:
        async with asyncio.timeout(60):
            assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_an_http_1_0_client_never_takes_a_broken_body_for_a_whole_one(
    lab: Lab, upstream: FakeUpstream
) -> None:  # P38
    digest = upstream.add_blob(REPO, blob(3 * MIB))
    upstream.chunked, upstream.stall_at = True, 2 * MIB
    host, _, port = lab.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /v2/{ALPINE}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
    assert b" 503 " in (await asyncio.wait_for(reader.readline(), 30))
    writer.close()
    upstream.go_on()


async def test_all_bytes_without_an_end_are_completed_later(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=0.5) as lab:
        upstream.chunked, upstream.die_at, upstream.die_once = True, 3 * MIB, False
        await lab.get_short(lab.blob_url(digest))
        upstream.chunked, upstream.die_at = False, None
        await asyncio.sleep(LIMITS.quiet)
        assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_a_client_of_a_healthy_upstream_does_not_wait_for_another_that_hangs(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    data = blob(200_000)
    digest = upstream.add_blob(REPO, data)
    hangs = replace(LIMITS, first_byte=60, answer=60)
    async with (
        FakeUpstream() as healthy,
        laboratory(tmp_path / "data", {HUB: [upstream], "ghcr.io": [healthy]}, limits=hangs) as lab,
    ):
        healthy.add_blob("me/copy", data)
        upstream.delay_headers = 60
        stuck = asyncio.create_task(lab.get(lab.blob_url(digest)))
        await upstream.wait_for(1, contains="/blobs/")
        async with asyncio.timeout(30):
            assert (await lab.get(lab.blob_url(digest, Repository("ghcr.io", "me/copy"))))[2] == data
        stuck.cancel()
