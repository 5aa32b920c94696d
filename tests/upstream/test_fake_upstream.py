"""The fake upstream does what tests will rely on."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.contents import OCI_MANIFEST, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream, Reply


async def test_fake_serves_blobs_ranges_and_images() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        image = make_image([blob(5000)])
        index = make_index({"linux/amd64": image})
        digest = index.publish(up, "library/alpine", "latest")
        async with http.get(f"{up.url}/v2/library/alpine/manifests/latest", headers={"Accept": index.media_type}) as r:
            assert r.headers["Docker-Content-Digest"] == digest
            assert await r.read() == index.body
        async with http.get(f"{up.url}/v2/library/alpine/manifests/latest", headers={"Accept": OCI_MANIFEST}) as r:
            assert r.status == 404
        layer = up.add_blob("library/alpine", blob(5000))
        async with http.get(f"{up.url}/v2/library/alpine/blobs/{layer}", headers={"Range": "bytes=4990-"}) as r:
            assert r.status == 206
            assert r.headers["Content-Range"] == "bytes 4990-4999/5000"
            assert await r.read() == blob(5000)[4990:]
        assert up.count(method="GET", contains="/blobs/") == 1
        assert up.requests[-1].sent == 10


async def test_fake_dies_at_an_offset_once_and_delivers_what_came_before() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        data = blob(1 << 20)
        digest = up.add_blob("a/b", data)
        up.die_at = 300_001
        async with http.get(f"{up.url}/v2/a/b/blobs/{digest}") as r:
            assert await r.content.readexactly(300_001) == data[:300_001]
            with pytest.raises(aiohttp.ClientPayloadError):
                await r.content.read()
        assert up.died.is_set()
        async with http.get(f"{up.url}/v2/a/b/blobs/{digest}") as r:
            assert await r.read() == data


async def test_fake_stalls_until_told_to_go_on() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        digest = up.add_blob("a/b", blob(1000))
        up.stall_at = 500
        async with asyncio.timeout(30), http.get(f"{up.url}/v2/a/b/blobs/{digest}") as r:
            assert await r.content.readexactly(500) == blob(1000)[:500]
            await up.stalled.wait()
            up.go_on()
            assert await r.content.read() == blob(1000)[500:]


async def test_fake_corrupts_paces_and_leaves_out_sizes() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        digest = up.add_blob("a/b", bytes(10_000))
        up.corrupt = {7: 0xFF}
        up.chunked = True
        up.rate = 100_000
        before = asyncio.get_running_loop().time()
        async with http.get(f"{up.url}/v2/a/b/blobs/{digest}") as r:
            assert r.headers["Transfer-Encoding"] == "chunked"
            body = await r.read()
        assert body[7] == 0xFF
        assert sum(body) == 0xFF
        assert asyncio.get_running_loop().time() - before >= 0.1


async def test_fake_stops_listening_and_listens_again_on_its_port() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        url = up.url
        async with http.get(f"{url}/v2/") as r:
            assert r.status == 200
        await up.stop_listening()
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get(f"{url}/v2/")
        await up.listen_again()
        assert up.url == url
        async with http.get(f"{url}/v2/") as r:
            assert r.status == 200
        up.down = True
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get(f"{url}/v2/")


async def test_fake_redirects_to_a_host_that_refuses_authorization() -> None:
    async with FakeUpstream() as up, FakeUpstream() as cdn, aiohttp.ClientSession() as http:
        digest = up.add_blob("a/b", b"hello")
        up.redirect_to = cdn
        async with http.get(f"{up.url}/v2/a/b/blobs/{digest}", allow_redirects=False) as r:
            assert r.status == 307
            where = r.headers["Location"]
        async with http.get(where, headers={"Authorization": "Bearer x"}) as r:
            assert r.status == 400
        async with http.head(where) as r:
            assert r.status == 403
        async with http.get(where) as r:
            assert await r.read() == b"hello"


async def test_fake_answers_as_told_and_records() -> None:
    async with FakeUpstream() as up, aiohttp.ClientSession() as http:
        up.status_for = lambda r: Reply(429, {"Retry-After": "7"}) if "/manifests/" in r.path else None
        async with http.get(f"{up.url}/v2/a/manifests/b", headers={"Accept": "x/y"}) as r:
            assert (r.status, r.headers["Retry-After"]) == (429, "7")
        assert (up.requests[0].status, up.requests[0].accept, up.requests[0].authorized) == (429, "x/y", False)
        async with asyncio.TaskGroup() as group:
            group.create_task(up.wait_for(2))
            async with http.get(f"{up.url}/v2/") as r:
                assert r.status == 200
