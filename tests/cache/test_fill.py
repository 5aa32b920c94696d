"""Fills seen from outside: one download, many readers, nothing complete before it is verified."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from metrics.events import FillFinished, FillStarted, RequestFinished, VerificationFailed
from proxy.cache.plan import WITHHELD
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
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
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
    lab: Lab, upstream: FakeUpstream, where: int, caplog: pytest.LogCaptureFixture
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
    (record,) = (record for record in caplog.records if "do not match their digest" in record.message)
    assert (vars(record)["digest"], vars(record)["repository"]) == (digest, f"{HUB}/{REPO}")


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
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
        await asyncio.wait_for(upstream.stalled.wait(), 30)
        _, _, head = await lab.get(lab.blob_url(digest), {"Range": f"bytes=0-{2 * MIB - 1}"})
        assert head != data[: 2 * MIB]
        upstream.go_on()
        assert (await tail)[0] == 502
        await lab.committed()


async def test_a_look_at_the_store_just_before_the_commit_costs_no_second_download(
    lab: Lab, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blob(3 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.stall_at = 2 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
    await asyncio.wait_for(upstream.stalled.wait(), 30)
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
