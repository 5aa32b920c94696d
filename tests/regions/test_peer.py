"""Asking one region: content, records, what proves who asks; and when it is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from metrics.events import PeerTransferred
from proxy.bucket import breaker
from proxy.fleet.protocol import SAYS_HEADER
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    BlobUnknown,
    GatewayTimeout,
    ManifestUnknown,
    NotFound,
    RangeNotSatisfiable,
    Unavailable,
)
from proxy.oci.ranges import ByteRange
from proxy.region_endpoint import RegionHandler
from proxy.regions import peer
from proxy.regions.budget import Budget
from proxy.regions.content import PeerStream
from proxy.regions.credentials import LinkFileError, LinkFiles
from proxy.regions.misses import IN_A_ROW
from proxy.regions.peer import Refused
from proxy.regions.scope import Scope
from tests.fleet.nodes import TYPE, a_socket, serving, url_of
from tests.regions.lab import (
    HUB,
    SMALL,
    TOKEN,
    Asker,
    Region,
    a_region,
    an_asker,
    grants_in,
    token_file,
    until_left_alone,
)

OTHER = "another-token-entirely-0815"
FEED = "/sync/v1/changes"


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    async with a_region(await grants_in(tmp_path)) as one:
        yield one


@pytest.fixture
async def asker(tmp_path: Path, region: Region) -> AsyncIterator[Asker]:
    async with an_asker(region.url, LinkFiles(token_file(tmp_path, TOKEN))) as one:
        await met(region)
        yield one


@asynccontextmanager
async def asking(folder: Path, feed: RegionHandler) -> AsyncIterator[Asker]:
    """Ask a region that answers with `feed` for its changes."""
    grants, files = await grants_in(folder), LinkFiles(token_file(folder, TOKEN))
    async with a_region(grants, more={FEED: feed}) as region, an_asker(region.url, files) as asker:
        yield asker


async def met(region: Region) -> None:
    """Return when the first ping has come, and been forgotten."""
    async with asyncio.timeout(30):
        while not region.requests:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
    region.requests.clear()


async def whole(stream: PeerStream) -> bytes:
    try:
        return b"".join([chunk async for chunk in stream])
    finally:
        await stream.aclose()


async def test_a_blob_is_read_and_its_bytes_are_told(region: Region, asker: Asker) -> None:
    digest = region.cache.store(SMALL)
    for start in (False, True):
        stream = await asker.client.source(start).open_blob(HUB, digest)
        assert (stream.size, stream.proven, stream.anonymous) == (len(SMALL), True, False)
        assert await whole(stream) == SMALL
    assert [held for _, _, held in region.cache.asked] == [True, False]
    told = [event for event in asker.events if isinstance(event, PeerTransferred)]
    assert told == [PeerTransferred("us-east", len(SMALL))] * 2
    assert asker.client.transferred == 2 * len(SMALL)
    for request in region.requests:
        assert request.headers["Via"] == "1.1 eu-west (entrepot)"
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers["Accept-Encoding"] == "identity"


async def test_a_span_of_a_blob_is_read(region: Region, asker: Asker) -> None:  # P4
    digest = region.cache.store(SMALL)
    source = asker.client.source(False)
    assert await whole(await source.open_blob(HUB, digest, ByteRange(100, 199))) == SMALL[100:200]
    with pytest.raises(RangeNotSatisfiable) as refused:
        await source.open_blob(HUB, digest, ByteRange(len(SMALL), None))
    assert refused.value.size == len(SMALL)


async def test_a_manifest_is_verified(region: Region, asker: Asker) -> None:  # P38
    digest = region.cache.publish(b"{}")
    wrong = region.cache.publish(b"[]", digest=Digest.of(b"other"))
    source = asker.client.source(True)
    found = await source.manifest(HUB, digest)
    assert (found.body, found.descriptor.media_type, found.proven, found.servable) == (b"{}", TYPE, True, True)
    with pytest.raises(BadContent, match="do not match"):
        await source.manifest(HUB, wrong)


async def test_what_a_region_has_not_is_unknown_and_what_it_must_ask_for_is_elsewhere(
    region: Region, asker: Asker
) -> None:
    absent = Digest.of(b"absent")
    for start in (False, True):
        with pytest.raises(BlobUnknown):
            await asker.client.source(start).open_blob(HUB, absent)
        with pytest.raises(ManifestUnknown):
            await asker.client.source(start).manifest(HUB, absent)
    region.cache.error = GatewayTimeout("another would have to be asked")
    with pytest.raises(GatewayTimeout):
        await asker.client.source(True).open_blob(HUB, absent)
    assert asker.client.available


async def test_records_are_asked_for_with_a_body_or_without(tmp_path: Path) -> None:
    async def echo(request: web.BaseRequest, scope: Scope) -> web.Response:
        return web.Response(body=request.method.encode() + await request.read())

    async with asking(tmp_path, echo) as asker:
        assert await asker.client.ask(f"{FEED}?since=", 5.0) == b"GET"
        assert await asker.client.ask(FEED, 5.0, b"abc") == b"POSTabc"
        with pytest.raises(NotFound):
            await asker.client.ask("/sync/v1/other", 5.0)
        assert not any(isinstance(event, PeerTransferred) for event in asker.events)


async def test_an_answer_that_is_too_long_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "MOST_BODY", 1000)

    async def long(request: web.BaseRequest, scope: Scope) -> web.Response:
        return web.Response(body=bytes(1001))

    async with asking(tmp_path, long) as asker:
        with pytest.raises(BadContent, match="more than the 1000 bytes"):
            await asker.client.ask(FEED, 5.0)


async def test_every_byte_goes_through_the_budget(region: Region, tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    budget = Budget(1 << 20, clock=lambda: 0.0, sleep=sleep)
    digest = region.cache.store(SMALL * 64)
    async with an_asker(region.url, LinkFiles(token_file(tmp_path, TOKEN)), budget=budget) as asker:
        stream = await asker.client.source(False).open_blob(HUB, digest)
        assert len(await whole(stream)) == 4 << 20
    ping = len(b'{"region":"us-east"}') / (1 << 20)
    assert waits[-1] == pytest.approx(4.0 - 0.25 + ping)
    assert max(b - a for a, b in pairwise(waits)) <= 0.25  # at most 256 KiB a take
    told = [event.bytes for event in asker.events if isinstance(event, PeerTransferred)]
    assert (sum(told), len(told) <= 5) == (4 << 20, True)


async def test_a_token_that_is_refused_is_read_again(region: Region, tmp_path: Path, asker: Asker) -> None:
    digest = region.cache.store(SMALL)
    file = token_file(tmp_path, OTHER, name="mine")
    async with an_asker(region.url, LinkFiles(file)) as late:
        await until_left_alone(late.client)
    async with an_asker(region.url, LinkFiles(token_file(tmp_path, TOKEN, name="mine"))) as rotated:
        source = rotated.client.source(True)
        await whole(await source.open_blob(HUB, digest))
        region.answer = (await rotated_region(tmp_path, region)).answer
        token_file(tmp_path, OTHER, name="mine")
        os.utime(file, (1, 1))
        streams = await asyncio.gather(*(source.open_blob(HUB, digest) for _ in range(4)))
        assert [await whole(stream) for stream in streams] == [SMALL] * 4
        assert rotated.client.available


async def rotated_region(folder: Path, region: Region) -> Region:
    """Return a region with the same content whose grant has the other token."""
    folder = folder / "rotated"
    folder.mkdir()
    async with a_region(await grants_in(folder, token=OTHER)) as other:
        other.cache.blobs.update(region.cache.blobs)
    return other


async def test_a_region_that_refuses_us_is_left_alone_and_the_log_says_why_without_the_token(
    region: Region, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with an_asker(region.url, LinkFiles(token_file(tmp_path, OTHER))) as asker:
        await until_left_alone(asker.client)
        region.requests.clear()
        with pytest.raises(Unavailable, match=r"not asked again yet.*401") as refused:
            await asker.client.source(True).open_blob(HUB, Digest.of(b"x"))
        assert not region.requests
        assert OTHER not in str(refused.value)
        assert "401" in (asker.client.problem or "")
    assert "left alone" in caplog.text
    assert OTHER not in caplog.text
    assert OTHER not in repr([record.__dict__ for record in caplog.records])


async def test_a_dead_region_is_left_alone_until_the_probe_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST", 0.02)
    monkeypatch.setattr(breaker, "MOST", 0.02)
    bound = a_socket()
    files = LinkFiles(token_file(tmp_path, TOKEN))
    async with a_region(await grants_in(tmp_path)) as region:
        digest = region.cache.store(SMALL)
        async with an_asker(url_of(bound.getsockname()[1]), files) as asker:
            source = asker.client.source(True)
            for _ in range(breaker.FAILURES):
                with pytest.raises(Unavailable, match=r"cannot be reached|not asked again"):
                    await source.open_blob(HUB, digest)
            await until_left_alone(asker.client)
            async with serving(region.answer, bound=bound):
                await until_left_alone(asker.client, available=True)
                assert await whole(await source.open_blob(HUB, digest)) == SMALL


async def test_a_region_that_does_not_answer_in_time_is_left_alone_at_once(
    region: Region, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "HEADERS_SECONDS", 0.1)
    region.cache.gate = asyncio.Event()
    with pytest.raises(Unavailable, match=r"does not answer within 0\.1 s"):
        await asker.client.request("GET", f"/v2/{HUB}/blobs/{Digest.of(b'x')}", seconds=0.1)
    assert not asker.client.available


async def test_a_short_question_without_an_answer_does_not_cut_off_the_rest(region: Region, asker: Asker) -> None:
    region.cache.gate = asyncio.Event()
    with pytest.raises(Unavailable, match="does not answer"):
        await asker.client.request("GET", f"/v2/{HUB}/blobs/{Digest.of(b'x')}", seconds=0.1)
    assert asker.client.available


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, "redirect"),
        (200, {}, "no \\[\\[grant\\]\\]"),
        (404, {}, "no \\[\\[grant\\]\\]"),
        (403, {}, "refuses this one with 403"),
    ],
)
async def test_who_is_no_region_that_knows_us_is_not_believed_and_never_followed(
    tmp_path: Path, status: int, headers: dict[str, str], message: str
) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, body=b"anything")

    async with serving(answer) as (url, _), an_asker(url, LinkFiles(token_file(tmp_path, TOKEN))) as asker:
        with pytest.raises(Unavailable, match=message):
            await asker.client.ping()
        assert not asker.client.available


async def test_a_gateway_that_answers_in_its_place_is_no_refusal(tmp_path: Path) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=504)

    async with serving(answer) as (url, _), an_asker(url, LinkFiles(token_file(tmp_path, TOKEN))) as asker:
        with pytest.raises(Unavailable, match="in front of") as error:
            await asker.client.source(False).open_blob(HUB, Digest.of(b"x"))
        assert not isinstance(error.value, Refused)


async def test_a_denial_by_the_region_s_upstream_is_not_a_refusal_of_us(tmp_path: Path) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=403, headers={SAYS_HEADER: "{}"})

    async with serving(answer) as (url, _), an_asker(url, LinkFiles(token_file(tmp_path, TOKEN))) as asker:
        with pytest.raises(Unavailable, match="with 403"):
            await asker.client.source(True).open_blob(HUB, Digest.of(b"x"))
        assert asker.client.available


async def test_a_name_that_is_not_the_region_s_own_is_told(
    region: Region, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with an_asker(region.url, LinkFiles(token_file(tmp_path, TOKEN)), name="moon") as asker:
        await asker.client.ping()
    assert "name is not the one" in caplog.text
    assert asker.client.rtt is not None


async def test_a_token_in_the_clear_is_told_once_but_for_this_machine(
    region: Region, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = LinkFiles(token_file(tmp_path, TOKEN))
    async with an_asker(region.url, files):
        assert "in the clear" not in caplog.text
    async with an_asker("http://192.0.2.1", files):
        assert caplog.text.count("in the clear") == 1
    assert TOKEN not in caplog.text


async def test_a_token_that_is_echoed_gets_into_no_error(tmp_path: Path) -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        said = {"errors": [{"code": "DENIED", "message": f"who is {request.headers['Authorization']}?"}]}
        return web.json_response(said, status=401)

    async with serving(echo) as (url, _), an_asker(url, LinkFiles(token_file(tmp_path, TOKEN))) as asker:
        with pytest.raises(Refused, match="who is Bearer") as refused:
            await asker.client.ping()
        assert TOKEN not in str(refused.value)


async def test_what_cannot_be_shown_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(LinkFileError, match="nowhere cannot be read"):
        async with an_asker("http://127.0.0.1:1", LinkFiles(tmp_path / "nowhere")):
            pass
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(LinkFileError, match=r"TLS with .*ca\.pem is impossible"):
        async with an_asker("https://127.0.0.1:1", LinkFiles(ca=tmp_path / "ca.pem")):
            pass


async def test_a_region_that_lacks_an_image_is_not_asked_for_each_of_its_layers(region: Region, asker: Asker) -> None:
    """Each question is a round trip between regions that a client waits for."""
    lacking = [Digest.of(bytes([number])) for number in range(20)]
    stored = region.cache.store(SMALL)
    near, last = asker.client.source(start=False), asker.client.source(start=True)
    for digest in lacking:
        with pytest.raises(BlobUnknown):
            await near.open_blob(HUB, digest)
    assert len(region.requests) == IN_A_ROW
    with pytest.raises(ManifestUnknown):
        await near.manifest(HUB, lacking[0])  # each image is asked for
    for digest in lacking[:5]:
        with pytest.raises(BlobUnknown):
            await last.open_blob(HUB, digest)  # and everything where nobody else is left
    assert len(region.requests) == IN_A_ROW + 6
    assert await whole(await last.open_blob(HUB, stored)) == SMALL
    assert await whole(await near.open_blob(HUB, stored)) == SMALL  # it has something of it after all
