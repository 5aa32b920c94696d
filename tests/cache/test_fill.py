"""Fills seen from outside: one download, many readers, sources that break, lie and come back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from metrics.events import FillFinished, FillResumed, FillStarted, RequestFinished, VerificationFailed
from proxy.cache.plan import WITHHELD
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository
from tests.cache.lab import ALPINE, HUB, LIMITS, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

MIB = 1 << 20
REPO = "library/alpine"


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, MIB + 1, 5 * MIB])
async def test_cold_and_warm_pulls_give_the_same_bytes(lab: Lab, upstream: FakeUpstream, size: int) -> None:  # P3
    data = blob(size)
    digest = upstream.add_blob(REPO, data)
    for _ in range(2):
        status, headers, body = await lab.get(lab.blob_url(digest))
        assert (status, body) == (200, data)
        assert headers["Content-Length"] == str(size)
        assert headers["Docker-Content-Digest"] == digest
        assert headers["ETag"] == f'"{digest}"'
        assert headers["Accept-Ranges"] == "bytes"
        await lab.committed()
    assert upstream.count(method="GET", contains="/blobs/") == 1


async def test_late_reader_gets_whole_blob_while_fill_runs(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 3 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    second = asyncio.create_task(lab.get(lab.blob_url(digest)))
    async with lab.http.get(lab.blob_url(digest), headers={"Range": f"bytes={MIB}-{2 * MIB - 1}"}) as part:
        assert part.status == 206  # it ends before the watermark: it leaves at once
        assert await part.read() == data[MIB : 2 * MIB]
    upstream.go_on()
    assert (await first)[2] == data
    assert (await second)[2] == data
    assert upstream.count(method="GET", contains="/blobs/") == 1


async def test_the_first_client_leaves_and_the_fill_goes_on(lab: Lab, upstream: FakeUpstream) -> None:  # P29
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 2 * MIB
    async with lab.http.get(lab.blob_url(digest)) as answer:
        assert answer.status == 200
        await answer.content.readexactly(1000)
    upstream.go_on()
    await lab.committed()
    assert (await lab.get(lab.blob_url(digest)))[2] == data
    assert upstream.count(method="GET", contains="/blobs/") == 1


async def test_the_tail_is_withheld_until_the_digest_is_right(lab: Lab, upstream: FakeUpstream) -> None:  # P38
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 3 * MIB - 1
    async with lab.http.get(lab.blob_url(digest)) as answer:
        await answer.content.readexactly(3 * MIB - WITHHELD)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.readexactly(1), 0.3)
        upstream.go_on()
        assert await answer.content.read() == data[3 * MIB - WITHHELD :]


async def test_a_small_blob_gives_no_byte_before_it_is_verified(lab: Lab, upstream: FakeUpstream) -> None:  # P38
    digest = upstream.add_blob(REPO, blob(MIB))
    upstream.corrupt = {5: 1}
    status, headers, body = await lab.get(lab.blob_url(digest))
    assert status == 502
    assert headers["Content-Type"] == "application/json"
    assert b"errors" in body
    assert (await lab.store.stats()).blobs == 0


@pytest.mark.parametrize("where", [0, 3 * MIB // 2, 3 * MIB - 1])
async def test_wrong_bytes_never_complete_a_body_and_are_never_kept(
    lab: Lab, upstream: FakeUpstream, where: int
) -> None:  # P38
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt = {where: 0xFF}
    status, got, whole = await lab.get_short(lab.blob_url(digest))
    assert (status, whole) == (200, False)
    assert len(got) <= len(data) - WITHHELD
    assert (await lab.store.stats()).blobs == 0
    retry, _, _ = await lab.get(lab.blob_url(digest), {"Range": f"bytes={len(got)}-"})
    assert retry == 503  # nobody stitches a good tail to a bad prefix
    assert lab.of(VerificationFailed)[0].source == f"127.0.0.1:{upstream.port}"


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
        await asyncio.wait_for(other.stalled.wait(), 5)
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
    await asyncio.wait_for(upstream.died.wait(), 5)
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
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, patience=0.5) as lab:
        pull = asyncio.create_task(lab.get_short(lab.blob_url(digest)))
        await asyncio.wait_for(upstream.died.wait(), 5)
        await upstream.stop_listening()
        upstream.cut_connections()
        status, got, whole = await pull
        assert (status, whole) == (200, False)
        assert got == data[: len(got)]
        async with asyncio.timeout(0.2):
            retry, _, _ = await lab.get(lab.blob_url(digest), {"Range": f"bytes={len(got)}-"})
        assert retry == 503
        await upstream.listen_again()
        upstream.die_at = None
        await asyncio.sleep(LIMITS.quiet)
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
        await asyncio.wait_for(upstream.stalled.wait(), 5)
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


async def test_a_blob_without_a_size_is_streamed_and_verified(lab: Lab, upstream: FakeUpstream) -> None:  # P37
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.chunked = True
    assert (await lab.get(lab.blob_url(digest)))[2] == data
    await lab.committed()
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=0-9"})
    assert (status, headers["Content-Range"], body) == (206, f"bytes 0-9/{3 * MIB}", data[:10])


async def test_a_footer_far_ahead_is_relayed_and_the_fill_goes_on(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(12 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = MIB
    pull = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    upstream.stall_at = None
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": "bytes=-1000"})
    assert (status, body) == (206, data[-1000:])
    assert headers["Content-Range"] == f"bytes {12 * MIB - 1000}-{12 * MIB - 1}/{12 * MIB}"
    upstream.go_on()
    assert (await pull)[2] == data


async def test_an_unknown_blob_is_404(lab: Lab) -> None:
    status, _, body = await lab.get(lab.blob_url(Digest.of(b"never there")))
    assert status == 404
    assert b"BLOB_UNKNOWN" in body


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


async def test_every_fill_that_starts_ends_once_in_the_metrics(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(2 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt = {5: 1}
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        await lab.get_short(lab.blob_url(digest))
        await lab.committed()
        await lab.get(lab.blob_url(Digest.of(b"nowhere")))
        assert len(lab.of(FillStarted)) == len(lab.of(FillFinished)) == 2


async def test_sources_that_contradict_each_other_start_it_over(tmp_path: Path, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.blobs[REPO][digest] = data + blob(MIB)
    upstream.die_at, upstream.die_once = 2 * MIB, False
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        async with asyncio.timeout(3):
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
        async with asyncio.timeout(5):
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
    async with server, laboratory(tmp_path / "data", {HUB: [first, upstream]}) as lab:
        async with asyncio.timeout(8):
            assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_an_http_1_0_client_never_takes_a_broken_body_for_a_whole_one(
    lab: Lab, upstream: FakeUpstream
) -> None:  # P38
    digest = upstream.add_blob(REPO, blob(3 * MIB))
    upstream.chunked, upstream.stall_at = True, 2 * MIB
    host, _, port = lab.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /v2/{ALPINE}/blobs/{digest} HTTP/1.0\r\n\r\n".encode())
    assert b" 503 " in (await asyncio.wait_for(reader.readline(), 5))
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


@pytest.mark.parametrize("header", ["bytes=500-1499", "bytes=-500", "bytes=5000-10000"])
async def test_ranges_of_a_blob_whose_size_the_source_does_not_say(
    lab: Lab, upstream: FakeUpstream, header: str
) -> None:  # P4
    data = blob(2048)
    digest = upstream.add_blob(REPO, data)
    upstream.chunked = True
    status, headers, body = await lab.get(lab.blob_url(digest), {"Range": header})
    if header == "bytes=5000-10000":
        assert status == 416
    else:
        part = data[500:1500] if header == "bytes=500-1499" else data[-500:]
        assert (status, body) == (206, part)
        assert headers["Content-Length"] == str(len(part))


async def test_a_range_of_an_unsized_blob_in_mid_fill_gets_everything(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(12 * MIB)  # RFC 9110 §14.2: a server may ignore Range; a part without a total would be wrong (P4)
    digest = upstream.add_blob(REPO, data)
    upstream.chunked = upstream.ignore_range = True
    upstream.stall_at = 2 * MIB
    pull = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    upstream.stall_at = None
    async with lab.http.get(lab.blob_url(digest), headers={"Range": "bytes=-1000"}) as footer:
        assert footer.status == 200
        upstream.go_on()
        assert await footer.read() == data
    assert (await pull)[2] == data
    assert upstream.count(method="GET", contains=digest) == 1


async def test_somebody_elses_manifest_cannot_spoil_a_blob_by_a_wrong_size(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(2 * MIB)  # P43
    digest = upstream.add_blob(REPO, data)
    image = make_image([b"x"])
    body = json.loads(image.body)
    body["layers"] = [{"mediaType": "application/octet-stream", "digest": digest, "size": 5}]
    upstream.add_manifest("evil/x", json.dumps(body).encode(), image.media_type, "1")
    assert (await lab.get(lab.manifest_url("1", Repository(HUB, "evil/x"))))[0] == 200
    upstream.chunked = True
    assert (await lab.get(lab.blob_url(digest)))[2] == data


async def test_a_range_that_waited_for_a_bad_fill_is_not_answered_from_the_good_one(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # a client's parallel ranges must not add up to a stitched body
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.corrupt, upstream.stall_at = {5: 1}, 3 * MIB
    async with FakeUpstream() as other, laboratory(tmp_path / "data", {HUB: [upstream, other]}) as lab:
        other.add_blob(REPO, data)
        tail = asyncio.create_task(lab.get(lab.blob_url(digest), {"Range": f"bytes={4 * MIB - 60_000}-"}))
        await asyncio.wait_for(upstream.stalled.wait(), 5)
        _, _, head = await lab.get(lab.blob_url(digest), {"Range": f"bytes=0-{2 * MIB - 1}"})
        assert head != data[: 2 * MIB]
        upstream.go_on()
        assert (await tail)[0] == 502
        await lab.committed()


async def test_a_client_of_a_healthy_upstream_does_not_wait_for_another_that_hangs(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    data = blob(200_000)
    digest = upstream.add_blob(REPO, data)
    hangs = replace(LIMITS, first_byte=30, answer=30)
    async with (
        FakeUpstream() as healthy,
        laboratory(tmp_path / "data", {HUB: [upstream], "ghcr.io": [healthy]}, limits=hangs) as lab,
    ):
        healthy.add_blob("me/copy", data)
        upstream.delay_headers = 30
        stuck = asyncio.create_task(lab.get(lab.blob_url(digest)))
        await upstream.wait_for(1, contains="/blobs/")
        async with asyncio.timeout(5):
            assert (await lab.get(lab.blob_url(digest, Repository("ghcr.io", "me/copy"))))[2] == data
        stuck.cancel()


async def test_a_look_at_the_store_just_before_the_commit_costs_no_second_download(
    lab: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 2 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    looked, go_on, real = asyncio.Event(), asyncio.Event(), lab.store.catalog.expected_size

    async def slowly(digest: Digest) -> int | None:
        looked.set()
        size = await real(digest)
        await go_on.wait()
        return size

    monkeypatch.setattr(lab.store.catalog, "expected_size", slowly)
    second = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await looked.wait()
    upstream.go_on()
    await first
    await lab.committed()
    go_on.set()
    assert (await second)[2] == data
    assert upstream.count(method="GET", contains=digest) == 1


async def test_clients_that_left_hold_nothing_while_the_fill_stands_still(lab: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(REPO, blob(4 * MIB))
    upstream.stall_at = 2 * MIB
    pull = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    for _ in range(20):
        async with lab.http.get(lab.blob_url(digest)) as answer:
            await answer.content.readexactly(1000)
            answer.close()
    await lab.until(lambda: sum(event.status == 499 for event in lab.of(RequestFinished)) == 20)
    assert lab.cache.running()[0].readers == 1
    upstream.go_on()
    await pull


async def test_a_refusal_is_404_for_a_range_retry_too(lab: Lab, upstream: FakeUpstream) -> None:  # P34
    digest = upstream.add_blob(REPO, blob(2048))
    upstream.status_for = lambda request: 403
    for _ in range(2):
        assert (await lab.get(lab.blob_url(digest), {"Range": "bytes=5-"}))[0] == 404


async def test_head_of_an_uncached_blob_downloads_nothing(lab: Lab, upstream: FakeUpstream) -> None:  # P3
    digest = upstream.add_blob(REPO, blob(MIB))
    status, headers, body = await lab.get(lab.blob_url(digest), method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(MIB), b"")
    assert upstream.count(method="GET", contains="/blobs/") == 0
    assert not lab.cache.running()


async def test_two_repositories_share_one_download_once_each_has_proved_it(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(3 * MIB)  # P43
    digest = upstream.add_blob(REPO, data)
    upstream.add_blob("me/copy", data)
    upstream.stall_at = 2 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 5)
    copy = asyncio.create_task(lab.get(lab.blob_url(digest, Repository(HUB, "me/copy"))))
    stranger = await lab.get(lab.blob_url(digest, Repository(HUB, "me/stranger")))
    assert stranger[0] == 404
    upstream.go_on()
    assert (await first)[2] == (await copy)[2] == data
    assert upstream.count(method="GET", contains="/blobs/") == 1
    assert (await lab.get(lab.blob_url(digest, Repository(HUB, "me/stranger"))))[0] == 404


async def test_a_hundred_clients_need_one_download(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.rate = 8 * MIB

    async def client(number: int) -> bytes:
        await asyncio.sleep(number * 0.004)
        return (await lab.get(lab.blob_url(digest)))[2]

    bodies = await asyncio.gather(*(client(number) for number in range(100)))
    assert all(body == data for body in bodies)
    assert upstream.count(method="GET", contains="/blobs/") == 1


async def test_a_client_that_resets_does_not_disturb_the_others(lab: Lab, upstream: FakeUpstream) -> None:
    data = blob(8 * MIB)
    digest = upstream.add_blob(REPO, data)

    async def rude() -> None:
        async with aiohttp.ClientSession() as session, session.get(lab.blob_url(digest)) as answer:
            await answer.content.readexactly(64 * 1024)

    polite = [asyncio.create_task(lab.get(lab.blob_url(digest))) for _ in range(4)]
    await asyncio.gather(*(rude() for _ in range(8)))
    for task in polite:
        assert (await task)[2] == data


async def test_ensure_fills_without_a_reader(lab: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(REPO, blob(2 * MIB))
    assert await lab.cache.ensure_blob(ALPINE, digest) == 2 * MIB
    assert await lab.cache.ensure_blob(ALPINE, digest) == 2 * MIB
    assert upstream.count(method="GET", contains="/blobs/") == 1
