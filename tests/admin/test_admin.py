"""The admin listener, over a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from multidict import CIMultiDict
from prometheus_client.parser import text_string_to_metric_families

from entrepot import __version__
from entrepot.admin import administering, why_no_api
from entrepot.config.model import Address
from entrepot.mirror import Mirror
from entrepot.view import State
from entrepot.watching import MOST_STREAMS
from metrics.events import UpstreamQuota
from proxy.oci.digest import Digest
from proxy.oci.errors import TooManyRequests, Unavailable
from proxy.oci.names import Repository, Tag
from proxy.upstream.credentials import Credential
from proxy.upstream.keyring import Keyring
from tests.admin.conftest import admin_of
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

ALPINE = Repository("docker.io", "library/alpine")


@pytest.fixture
async def admin(running: Mirror) -> AsyncIterator[ClientSession]:
    async with admin_of(running) as session:
        yield session


async def ask(admin: ClientSession, path: str) -> tuple[int, Any]:
    async with admin.get(path) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_health_is_told_while_the_loop_turns(admin: ClientSession, running: Mirror) -> None:
    for state in ("starting", "ready", "draining"):
        running.state = state
        assert await ask(admin, "/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("ready", 200), ("draining", 503)])
async def test_readiness_follows_the_state(admin: ClientSession, running: Mirror, state: State, status: int) -> None:
    running.state = state
    answered, document = await ask(admin, "/readyz")
    assert (answered, document["status"]) == (status, state)
    assert bool(document["reasons"]) == (status == 503)


async def test_a_mirror_whose_catalog_is_damaged_is_not_ready_and_says_what_helps(
    admin: ClientSession, running: Mirror, data: Path
) -> None:
    for name in ("catalog.sqlite", "catalog.sqlite-wal"):
        with (data / name).open("r+b") as file:
            file.write(b"\xa5" * os.fstat(file.fileno()).st_size)
    # A connection goes on with the pages that it has; several questions at once make others look at the file.
    said: list[object] = []
    async with asyncio.timeout(30):
        while not any(isinstance(one, Exception) for one in said):
            questions = (running.store.catalog.intents() for _ in range(12))
            said = await asyncio.gather(*questions, return_exceptions=True)
    status, document = await ask(admin, "/readyz")
    assert (status, document["status"]) == (503, "damaged")
    assert "Restart the mirror" in document["reasons"][0]
    _, document = await ask(admin, "/api/status")
    assert document["state"] == "damaged"


async def test_a_mirror_whose_upstream_is_gone_is_degraded_and_still_ready(
    admin: ClientSession, running: Mirror, upstream: FakeUpstream
) -> None:
    await upstream.stop_listening()
    with pytest.raises(Unavailable):
        await running.cache.manifest(ALPINE, Tag("latest"))
    status, document = await ask(admin, "/readyz")
    assert (status, document["status"]) == (200, "degraded")
    assert "docker.io" in document["reasons"][0]
    _, shown = await ask(admin, "/api/status")
    (docker,) = shown["upstreams"]
    assert docker["reachable"] is False
    assert docker["hosts"][0]["error"]


async def test_an_upstream_that_refuses_the_credential_or_asks_to_wait_is_told_of(
    admin: ClientSession, running: Mirror, upstream: FakeUpstream
) -> None:
    source = running.sources["docker.io"][0]
    source.holds.note("manifest", TooManyRequests("429", retry_after=30))
    refused = Credential("user", "expired")
    source.keyring = Keyring(source.name, refused, None, source.health.clock)
    assert await source.keyring.renew(refused) is None
    _, shown = await ask(admin, "/api/status")
    (host,) = shown["upstreams"][0]["hosts"]
    assert host["credential_refused"] is True
    assert 28 < host["held"]["manifest"] <= 30
    status, document = await ask(admin, "/readyz")
    assert (status, document["status"]) == (200, "degraded")
    assert "refuses our credential" in document["reasons"][0]


async def test_status_tells_what_an_operator_asks_first(
    admin: ClientSession, running: Mirror, upstream: FakeUpstream
) -> None:
    image = make_image([blob(2048)])
    image.publish(upstream, "library/alpine", "latest")
    host = running.sources["docker.io"][0].name
    running.metrics.observe(UpstreamQuota(host, 100, 42, 21600))
    await running.cache.manifest(ALPINE, Tag("latest"))
    await running.cache.ensure_blob(ALPINE, Digest.of(blob(2048)))
    status, document = await ask(admin, "/api/status")
    assert status == 200
    assert document["version"] == __version__
    assert document["state"] == "ready"
    assert document["region"] == "eu-west"
    assert document["offline"] is False
    assert document["listen"] == ["http://127.0.0.1:5000"]
    assert 0 <= document["uptime"] < 60
    assert document["fills"] == []
    assert document["store"]["blobs"] == 2
    assert document["store"]["manifests"] == 1
    assert document["store"]["bytes"] == 2048 + len(image.body)
    (docker,) = document["upstreams"]
    assert docker["reachable"] is True
    assert docker["hosts"] == [
        {
            "host": host,
            "answered": True,
            "reachable": True,
            "error": None,
            "quota": {"limit": 100, "remaining": 42, "window": 21600},
            "breaker": "closed",
            "credential_refused": False,
            "credential_error": None,
            "held": {},
        }
    ]
    near = {"neighbour", "bucket", "redirected"}
    assert set(document["totals"]) == {"hit", "miss", "joined", "stale", "relayed", "error"} | near


async def test_a_fill_under_way_is_shown_with_its_progress(
    admin: ClientSession, running: Mirror, upstream: FakeUpstream
) -> None:
    data = blob(4 << 20)
    digest = upstream.add_blob("library/alpine", data)
    upstream.stall_at = 2 << 20
    stream = await running.cache.open_blob(ALPINE, digest)
    try:
        await upstream.stalled.wait()
        _, document = await ask(admin, "/api/status")
        (fill,) = document["fills"]
        assert (fill["digest"], fill["repository"]) == (digest, "docker.io/library/alpine")
        assert fill["size"] == len(data)
        assert 0 <= fill["received"] <= 2 << 20
    finally:
        await stream.aclose()
        upstream.go_on()


async def test_metrics_hold_the_store_and_what_was_counted(
    admin: ClientSession, running: Mirror, upstream: FakeUpstream
) -> None:
    data = blob(2048)
    digest = upstream.add_blob("library/alpine", data)
    await running.cache.ensure_blob(ALPINE, digest)
    async with admin.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(await response.text())
    numbers = {sample.name: sample.value for family in families for sample in family.samples}
    assert numbers["entrepot_store_bytes"] == 2048
    assert numbers["entrepot_store_blobs"] == 1
    assert numbers["entrepot_fills_started_total"] == 1
    assert numbers["entrepot_fills_running"] == 0
    assert numbers["entrepot_received_bytes_total"] == 2048


async def test_openmetrics_is_given_to_who_asks_for_it(admin: ClientSession) -> None:
    async with admin.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


async def test_a_store_that_gives_no_numbers_hides_nothing_else(
    admin: ClientSession, running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(running.store, "stats", fail)
    status, document = await ask(admin, "/api/status")
    assert (status, document["store"]) == (200, None)
    async with admin.get("/metrics") as response:
        assert response.status == 200


async def test_unknown_paths_are_404_in_json(admin: ClientSession) -> None:  # P9
    status, document = await ask(admin, "/nothing")
    assert status == 404
    assert document["errors"][0]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/api/status"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed_here(admin: ClientSession, method: str, path: str) -> None:
    async with admin.request(method, path) as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert (await response.json())["errors"][0]["code"] == "UNSUPPORTED"


async def test_a_failure_is_told_without_its_reason(
    admin: ClientSession, running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(running, "upstream_status", fail)
    status, document = await ask(admin, "/api/status")
    assert status == 500
    assert "hunter2" not in str(document)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example"},
        {"X-Forwarded-For": "192.0.2.7"},
        {"Forwarded": "for=192.0.2.7"},
    ],
)
async def test_api_is_refused_to_what_comes_from_elsewhere(admin: ClientSession, headers: dict[str, str]) -> None:
    async with admin.get("/api/status", headers=headers) as response:
        assert response.status == 403
        assert (await response.json())["errors"][0]["code"] == "DENIED"
    async with admin.get("/healthz", headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["127.0.0.1:5001", "[::1]:5001", "localhost", "localhost:5001", "192.0.2.1:5001"])
def test_api_is_given_on_this_machine(peer: str, host: str) -> None:
    assert why_no_api(peer, host, CIMultiDict({"Host": host})) is None


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "", None])
def test_api_is_not_given_to_other_machines(peer: str | None) -> None:
    assert why_no_api(peer, "127.0.0.1:5001", CIMultiDict()) is not None


@pytest.mark.parametrize("host", ["", "evil.example:5001", "127.0.0.1.evil.example", "[::1", "localhost@evil.example"])
def test_api_is_not_given_under_other_names(host: str) -> None:
    assert why_no_api("127.0.0.1", host, CIMultiDict()) is not None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("kind", ["empty", "image", "iframe", "script"])
async def test_api_is_not_given_to_pages_of_other_sites(admin: ClientSession, site: str, kind: str) -> None:
    async with admin.get("/api/live", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": kind}) as response:
        assert response.status == 403


@pytest.mark.parametrize(("site", "kind"), [("same-origin", "empty"), ("none", "document"), ("cross-site", "document")])
async def test_api_is_given_to_the_mirrors_own_page_and_to_links(admin: ClientSession, site: str, kind: str) -> None:
    async with admin.get("/api/status", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": kind}) as response:
        assert response.status == 200


async def test_all_pages_that_may_be_open_leave_room_for_probes(running: Mirror) -> None:
    running.config = msgspec.structs.replace(running.config, admin=Address("127.0.0.1", 0))
    async with administering(running) as (listener,), AsyncExitStack() as held, asyncio.timeout(30):
        address = listener.getsockname()
        for _ in range(6 * MOST_STREAMS):  # what a browser opens for a page
            reader, writer = await asyncio.open_connection(*address)
            held.callback(writer.close)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await reader.readexactly(12) == b"HTTP/1.1 200"
        async with ClientSession() as probe, probe.get("http://{}:{}/readyz".format(*address)) as response:
            assert response.status == 200


async def test_half_a_head_and_a_flood_of_connections_do_not_stay(
    running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr("proxy.server.HEAD_SECONDS", 0.2)
    monkeypatch.setattr("entrepot.admin.CONNECTIONS", 2)
    running.config = msgspec.structs.replace(running.config, admin=Address("127.0.0.1", 0))
    async with administering(running) as (listener,), asyncio.timeout(30):
        where = listener.getsockname()
        opened = [await asyncio.open_connection(*where) for _ in range(3)]
        for _, writer in opened:
            writer.write(b"GET /healthz HTTP/1.1\r\nHos")
        ends = [await reader.read() for reader, _ in opened]
        assert [end[:12] for end in ends] == [b"", b"", b"HTTP/1.1 503"]
        async with ClientSession() as http, http.get(f"http://127.0.0.1:{where[1]}/healthz") as answer:
            assert answer.status == 200
        for _, writer in opened:
            writer.close()
