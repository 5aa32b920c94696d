"""What a region answers others: by grant, by scope, never in a circle; and what clients keep."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from metrics.events import RegionAnswered
from proxy import region_endpoint
from proxy.fleet.protocol import SAYS_HEADER, Says
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, NotFound
from proxy.oci.names import Tag
from proxy.regions.protocol import regions_of, tag_target, via
from proxy.regions.scope import Scope
from tests.fleet.nodes import Growing
from tests.regions.lab import HUB, LIBRARY, PRIVATE, SMALL, TOKEN, Region, a_record, a_region, grants_in

CHANGES = "/sync/v1/changes"
OURS = {"Authorization": f"Bearer {TOKEN}", "Via": via("eu-west")}
HELD = OURS | {"Cache-Control": "only-if-cached"}


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    async with a_region(await grants_in(tmp_path)) as one:
        yield one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def fetch(
    http: aiohttp.ClientSession,
    region: Region,
    target: str,
    headers: dict[str, str] = OURS,
    method: str = "GET",
    data: bytes | None = None,
) -> tuple[int, CIMultiDictProxy[str], bytes]:
    async with http.request(method, region.url + target, headers=headers, data=data) as response:
        return response.status, response.headers, await response.read()


def blob(digest: Digest, repository: object = HUB) -> str:
    return f"/v2/{repository}/blobs/{digest}"


def manifest(digest: Digest, repository: object = HUB) -> str:
    return f"/v2/{repository}/manifests/{digest}"


async def test_content_is_given_by_digest_with_what_is_known_of_it(region: Region, http: aiohttp.ClientSession) -> None:
    digest, body = region.cache.store(SMALL), region.cache.publish(b"{}")
    status, headers, content = await fetch(http, region, blob(digest))
    assert (status, content, headers["Docker-Content-Digest"]) == (200, SMALL, digest)
    assert Says.decode(headers[SAYS_HEADER]) == Says(proven=True, size=len(SMALL))
    status, headers, content = await fetch(http, region, manifest(body).replace(":", "%3A"))
    assert (status, content) == (200, b"{}")
    assert Says.decode(headers[SAYS_HEADER]).servable
    assert region.cache.asked == [(HUB, digest, False), (HUB, body, False)]
    told = [event for event in region.events if isinstance(event, RegionAnswered)]
    assert told == [RegionAnswered("blob", 200, len(SMALL)), RegionAnswered("manifest", 200, 2)]


async def test_a_range_of_a_blob_is_given(region: Region, http: aiohttp.ClientSession) -> None:  # P4
    digest = region.cache.store(SMALL)
    status, headers, content = await fetch(http, region, blob(digest), OURS | {"Range": "bytes=10-19"})
    assert (status, content) == (206, SMALL[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(SMALL)}"
    status, headers, _ = await fetch(http, region, blob(digest), OURS | {"Range": "bytes=70000-"})
    assert (status, Says.decode(headers[SAYS_HEADER]).size) == (416, len(SMALL))


async def test_head_tells_what_is_known_and_sends_nothing(region: Region, http: aiohttp.ClientSession) -> None:
    digest = region.cache.store(SMALL)
    status, headers, content = await fetch(http, region, blob(digest), method="HEAD")
    assert (status, Says.decode(headers[SAYS_HEADER]).size, content) == (200, len(SMALL), b"")


async def test_what_a_grant_does_not_cover_is_unknown_and_nothing_is_looked_up(
    region: Region, http: aiohttp.ClientSession
) -> None:
    digest = region.cache.store(SMALL)
    region.cache.publish(SMALL)
    region.cache.records[Tag("a")] = (a_record("a", SMALL, 1), 0.0)
    for target in (blob(digest, PRIVATE), manifest(digest, PRIVATE), tag_target(PRIVATE, Tag("a"))):
        status, _, body = await fetch(http, region, target)
        assert (status, b"not known here" in body) == (404, True)
    assert not region.cache.asked


async def test_what_is_not_stored_is_a_504_where_only_that_was_asked_for(
    region: Region, http: aiohttp.ClientSession
) -> None:  # RFC 9111 §5.2.1.7
    absent = Digest.of(b"absent")
    for target in (blob(absent), manifest(absent)):
        assert (await fetch(http, region, target, HELD))[0] == 504
        assert (await fetch(http, region, target))[0] == 404
    assert [held for _, _, held in region.cache.asked] == [True, False] * 2


async def test_a_question_that_comes_back_to_where_it_began_is_refused_and_logged_once(
    region: Region, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    digest = region.cache.store(SMALL)
    circle = OURS | {"Via": f"1.1 gate.corp (squid, 4), {via('us-east')}, {via('eu-west')}"}
    with caplog.at_level(logging.ERROR):
        assert [(await fetch(http, region, blob(digest), circle))[0] for _ in range(2)] == [504, 504]
    assert len(caplog.records) == 1
    assert not region.cache.asked


async def test_only_those_who_are_regions_meet_the_endpoint(region: Region, http: aiohttp.ClientSession) -> None:
    digest = region.cache.store(SMALL)
    for headers in ({}, {"Via": "1.1 gate.corp (squid/4.10)"}, {"Via": "1.1 entrepot"}, {"Authorization": "Bearer x"}):
        assert (await fetch(http, region, blob(digest), headers))[2] == b"the face"
    for target in (blob(digest), "/v2/", CHANGES):
        assert (await fetch(http, region, target, {"Via": via("eu-west")}))[0] == 401


async def test_without_grants_there_is_nothing_of_it(http: aiohttp.ClientSession) -> None:
    async with a_region(None) as region:
        for target in (CHANGES, tag_target(HUB, Tag("a")), blob(Digest.of(b"x"))):
            assert (await fetch(http, region, target))[2] == b"the face"


@pytest.mark.parametrize(
    ("header", "regions"),
    [
        (["1.1 eu-west (entrepot)"], ("eu-west",)),
        (["HTTP/1.1 a (entrepot),1.0 b", "2 c (entrepot)"], ("a", "c")),
        (["1.1 entrepot", "1.1 proxy.corp:80 (entrepot)", "1.1 A (entrepot)", "1.1 a (entrepot/1)", ""], ()),
    ],
)
def test_the_regions_of_a_via_are_those_that_say_so(header: list[str], regions: tuple[str, ...]) -> None:
    assert regions_of(header) == regions


async def test_a_ping_tells_the_region_s_name(region: Region, http: aiohttp.ClientSession) -> None:
    assert json.loads((await fetch(http, region, "/v2/"))[2]) == {"region": "us-east"}


@pytest.mark.parametrize(
    "target",
    [
        "/v2/docker.io/library/alpine/manifests/latest",
        "/v2/docker.io/library/alpine/tags/list",
        "/v2/docker.io/../blobs/sha256:" + "0" * 64,
        "/v2/_catalog",
        "/sync/v1/",
        "/sync/v1/tag?repository=alpine&name=a",
        "/sync/v1/tag?repository=docker.io/library/alpine&name=-",
    ],
)
async def test_nothing_else_is_answered(region: Region, http: aiohttp.ClientSession, target: str) -> None:
    status, _, body = await fetch(http, region, target)
    assert status in (400, 404), body
    assert json.loads(body)["errors"]
    assert not region.cache.asked


async def test_regions_only_read(region: Region, http: aiohttp.ClientSession) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await fetch(http, region, blob(Digest.of(b"x")), method=method))[0] == 405


async def test_a_tag_is_told_with_its_age_in_either_encoding(region: Region, http: aiohttp.ClientSession) -> None:
    record = a_record("3.20", SMALL, 7)
    region.cache.records[Tag("3.20")] = (record, 4.5)
    target = tag_target(HUB, Tag("3.20"))
    status, headers, body = await fetch(http, region, target)
    assert (status, headers["Content-Type"]) == (200, "application/msgpack")
    assert msgspec.msgpack.decode(body)["age"] == 4.5
    told = json.loads((await fetch(http, region, target, OURS | {"Accept": "application/json"}))[2])
    assert (told["region"], record.digest in told["record"]) == ("us-east", True)
    assert (await fetch(http, region, tag_target(HUB, Tag("other"))))[0] == 404


async def test_what_is_added_is_given_the_scope_and_the_body(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    async def ranges(request: web.BaseRequest, scope: Scope) -> web.Response:
        assert scope == LIBRARY
        return web.Response(body=(await request.read())[::-1])

    async with a_region(await grants_in(tmp_path), more={"/sync/v1/ranges": ranges}) as region:
        assert (await fetch(http, region, "/sync/v1/ranges?a", method="POST", data=b"abc"))[2] == b"cba"
        assert (await fetch(http, region, "/sync/v1/ranges", {}, "POST", b"abc"))[0] == 401
        status, _, body = await fetch(http, region, "/sync/v1/ranges", method="POST", data=bytes(2 << 20))
        assert (status, b"too long" in body) == (400, True)
        assert region.events[0] == RegionAnswered("ranges", 200, 3)


async def test_too_many_at_once_are_told_to_come_later_and_pings_are_not(
    tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_endpoint, "MOST_AT_ONCE", 1)
    begun, end = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest, scope: Scope) -> web.Response:
        begun.set()
        await end.wait()
        return web.Response(body=b"")

    async with a_region(await grants_in(tmp_path), more={CHANGES: slow}) as region:
        first = asyncio.create_task(fetch(http, region, CHANGES))
        await begun.wait()
        status, headers, _ = await fetch(http, region, blob(Digest.of(b"x")))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert (await fetch(http, region, "/v2/"))[0] == 200
        end.set()
        assert (await first)[0] == 200


async def test_headers_that_do_not_leave_in_time_are_an_answer(
    region: Region, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:  # P26
    monkeypatch.setattr(region_endpoint, "HEADERS_SECONDS", 0.1)
    region.cache.gate = asyncio.Event()
    status, _, body = await fetch(http, region, blob(Digest.of(b"x")))
    assert (status, b"no answer in" in body) == (503, True)


async def test_a_running_download_is_passed_on_and_closed_short_where_it_fails(
    region: Region, http: aiohttp.ClientSession
) -> None:  # P28
    growing = Growing(SMALL)
    growing.arrive(1000)
    digest = region.cache.fill(growing)
    async with http.get(region.url + blob(digest), headers=OURS) as response:
        assert await response.content.readexactly(1000) == SMALL[:1000]
        growing.fail(NotFound("gone"))
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await growing.closed.wait()


async def test_what_would_need_another_region_is_a_504(region: Region, http: aiohttp.ClientSession) -> None:
    region.cache.error = GatewayTimeout("another would have to be asked")
    assert (await fetch(http, region, blob(Digest.of(b"x"))))[0] == 504


async def test_a_failure_nobody_foresaw_is_logged_and_answered(
    region: Region, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(region.cache, "blobs")
    assert (await fetch(http, region, blob(Digest.of(b"x"))))[0] == 500
    assert [record.message for record in caplog.records] == ["a region's request failed"]
    assert TOKEN not in caplog.text
