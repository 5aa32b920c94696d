"""The page at /dashboard and what it asks: /api/live and /api/history, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse, ClientSession, web
from yarl import URL

from entrepot.config import Secret
from entrepot.dashboard import INDEX, add_no_dashboard, pages
from entrepot.live import Live, totals
from entrepot.mirror import Mirror
from entrepot.watching import Watching, watching
from metrics.events import ClosureEvicted, FillFinished, RequestFinished
from metrics.history import HistoryView
from metrics.prometheus import Metrics
from proxy.oci.names import Repository
from tests.admin.conftest import admin_of

SHOWN = ("/api/live", "/api/history")
ALPINE = Repository("docker.io", "library/alpine")


@pytest.fixture
async def watched(running: Mirror) -> AsyncIterator[Watching]:
    async with watching(running) as watched:
        running.history = watched
        yield watched


@pytest.fixture
async def admin(running: Mirror, watched: Watching) -> AsyncIterator[ClientSession]:
    async with admin_of(running) as session, asyncio.timeout(30):
        yield session


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document is made when there is a reason, or in an hour."""
    monkeypatch.setattr("entrepot.watching.LIVE_SECONDS", 3600.0)
    monkeypatch.setattr("entrepot.watching.SOONEST_SECONDS", 0.01)


async def documents(answer: ClientResponse) -> AsyncGenerator[Live, None]:
    while line := await answer.content.readline():
        yield msgspec.json.decode(line, type=Live)


def url_of(session: ClientSession) -> URL:
    url = session._base_url
    assert url is not None
    return url / "api/live"


def finished(outcome: str, *, sent: int = 0, kind: str = "blob", status: int = 200) -> RequestFinished:
    return RequestFinished(
        kind, "GET", status, outcome, "docker.io", "library/alpine", "latest", sent, 0.03, 0.1, "192.0.2.7", "id"
    )


# The page.


async def test_every_file_of_the_page_is_answered_under_its_policy(admin: ClientSession) -> None:
    assert {INDEX, "vendor/uPlot.iife.min.js"} <= set(pages())
    for name in pages():
        await is_answered(admin, name)


async def is_answered(admin: ClientSession, name: str) -> None:
    async with admin.get(f"/dashboard/{name}") as answer:
        assert answer.status == 200
        assert await answer.read() == pages()[name].body
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        tag = answer.headers["ETag"]
    async with admin.get(f"/dashboard/{name}", headers={"If-None-Match": f'"other", W/{tag}'}) as answer:
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)
        assert answer.headers["Cache-Control"] == "no-cache"
    async with admin.head(f"/dashboard/{name}") as answer:
        assert (answer.status, answer.content_length) == (200, len(pages()[name].body))


async def test_the_page_is_found_without_its_last_slash(admin: ClientSession) -> None:
    async with admin.get("/dashboard") as answer:
        assert answer.url.path == "/dashboard/"
        assert await answer.read() == pages()[INDEX].body


async def test_what_is_no_file_of_the_page_is_404_in_json(admin: ClientSession) -> None:
    for name in ("nothing.js", "vendor/", "../admin.py", "vendor/%2e%2e/%2e%2e/admin.py", "vendor/LICENSE"):
        async with admin.get(URL(f"{url_of(admin).origin()}/dashboard/{name}", encoded=True)) as answer:
            assert (answer.status, (await answer.json())["errors"][0]["code"]) == (404, "NOT_FOUND")
    async with admin.post("/dashboard/") as answer:
        assert (answer.status, (await answer.json())["errors"][0]["code"]) == (405, "UNSUPPORTED")


async def test_the_page_is_for_whoever_reaches_the_listener(admin: ClientSession) -> None:
    async with admin.get("/dashboard/", headers={"X-Forwarded-For": "192.0.2.7", "Host": "mirror.example"}) as answer:
        assert answer.status == 200


async def test_what_serves_from_bundles_says_that_it_has_no_page() -> None:
    app = web.Application()
    add_no_dashboard(app.router)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with ClientSession(f"http://{host}:{port}") as session:
            for path in ("/dashboard", "/dashboard/", "/dashboard/index.html"):
                async with session.get(path) as answer:
                    assert answer.status == 404
                    assert "serves from bundles has no dashboard" in (await answer.json())["errors"][0]["message"]
    finally:
        await runner.cleanup()


# Who may ask.


async def test_what_the_page_shows_is_for_this_machine_or_who_has_the_token(
    admin: ClientSession, running: Mirror
) -> None:
    elsewhere, without = {"X-Forwarded-For": "192.0.2.7"}, running.config
    for path in (*SHOWN, "/api/pulls", "/api/pulls/one"):
        running.config = without
        for headers in (elsewhere, {"Host": "evil.example"}):  # DNS rebinding
            async with admin.get(path, headers=headers) as answer:
                assert (answer.status, (await answer.json())["errors"][0]["code"]) == (403, "DENIED")
        running.config = msgspec.structs.replace(running.config, admin_token=Secret("opens"))
        async with admin.get(path, headers=elsewhere) as answer:
            assert answer.status == 401
        async with admin.get(path, headers=elsewhere | {"Authorization": "Bearer opens"}) as answer:
            assert answer.status == (200 if path in SHOWN else 404)  # nothing tells pulls here


async def test_a_page_of_another_site_cannot_read_it(admin: ClientSession) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for path in SHOWN:
        for method, status in (("GET", 200), ("OPTIONS", 405)):
            async with admin.request(method, path, headers=asked) as answer:
                assert answer.status == status
                assert not [name for name in answer.headers if name.startswith("Access-Control-")]
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


# Live.


async def test_a_document_comes_at_once_and_another_as_soon_as_something_is_new(
    admin: ClientSession, running: Mirror, watched: Watching, seldom: None
) -> None:
    async with admin.get("/api/live") as answer:
        assert answer.content_type == "application/x-ndjson"
        lines = documents(answer)
        first = await anext(lines)
        assert (first.state, first.region, first.totals.requests) == ("ready", "eu-west", 0)
        assert first.store is not None
        assert first.space is not None
        running.metrics.observe(finished("hit", sent=10))
        watched.nudge()
        second = await anext(lines)
        assert (second.totals.requests, second.totals.sent, second.totals.saved) == (1, 10, 10)
        assert second.totals.lookups["hit"] == 1


@pytest.mark.parametrize(
    ("taken", "packed"), [("gzip, br", True), ("br, GZIP;q=0.5", True), ("identity", False), ("gzip; q=0", False)]
)
async def test_each_document_is_whole_for_who_takes_it_packed_and_for_who_does_not(
    admin: ClientSession, watched: Watching, seldom: None, taken: str, packed: bool
) -> None:
    async with admin.get("/api/live", headers={"Accept-Encoding": taken}) as answer:
        assert ("Content-Encoding" in answer.headers) == packed
        assert answer.headers["Vary"] == "Accept-Encoding"
        lines = documents(answer)
        assert (await anext(lines)).totals.requests == 0  # while the answer goes on
        watched.nudge()
        assert (await anext(lines)).state == "ready"


async def test_documents_go_on_by_themselves(admin: ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrepot.watching.LIVE_SECONDS", 0.05)
    monkeypatch.setattr("entrepot.watching.SOONEST_SECONDS", 0.01)
    async with admin.get("/api/live") as answer, aclosing(documents(answer)) as lines:
        moments = [(await anext(lines)).now for _ in range(4)]
    assert moments == sorted(set(moments))


async def test_one_document_is_made_for_all_who_look_and_none_while_nobody_does(
    admin: ClientSession, watched: Watching, seldom: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, live = [], watched.live

    async def counted() -> Live:
        made.append(await live())
        return made[-1]

    monkeypatch.setattr(watched, "live", counted)
    watched.nudge()
    async with admin.get("/healthz"):
        assert made == []
    async with AsyncExitStack() as stack:
        answers = [await stack.enter_async_context(admin.get("/api/live")) for _ in range(3)]
        lines = [documents(answer) for answer in answers]
        assert {(await anext(one)).now for one in lines} <= {one.now for one in made}
        watched.nudge()
        last = [(await anext(one)).now for one in lines]
    assert len(made) <= 3 < 2 * len(lines)
    assert last[0] in {one.now for one in made}


async def test_no_more_clients_than_are_allowed_stream_and_one_that_leaves_gives_its_place(
    admin: ClientSession, watched: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.watching.MOST_STREAMS", 1)
    monkeypatch.setattr("entrepot.watching.LIVE_SECONDS", 0.02)
    monkeypatch.setattr("entrepot.watching.SOONEST_SECONDS", 0.01)
    async with admin.get("/api/live"), admin.get("/api/live") as answer:
        assert (answer.status, answer.content_type) == (429, "application/json")
        assert "/api/status" in (await answer.json())["errors"][0]["message"]
    while True:
        async with admin.get("/api/live") as answer:
            if answer.status == 200:
                return


async def test_what_streams_ends_cleanly_with_the_listener(running: Mirror, watched: Watching, seldom: None) -> None:
    async with ClientSession() as client, AsyncExitStack() as listener, asyncio.timeout(30):
        session = await listener.enter_async_context(admin_of(running))
        async with client.get(url_of(session)) as answer:
            lines = documents(answer)
            await anext(lines)
            await listener.aclose()
            assert [line async for line in lines] == []
            assert answer.content.exception() is None


class Endless:
    """A HistoryShown whose documents never end; `taken` of them were, `left` is set when who takes them has gone."""

    newest = None

    def __init__(self) -> None:
        self.taken = 0
        self.left = asyncio.Event()

    def view(self, seconds: float) -> HistoryView:
        return HistoryView(5.0, ())

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[bytes]]:
        async def large() -> AsyncGenerator[bytes, None]:
            while True:
                self.taken += 1
                yield b"\n" * (256 << 10)

        async with aclosing(large()) as pieces:
            yield pieces
        self.left.set()

    async def hang_up(self) -> None:
        pass


async def test_a_client_that_does_not_read_holds_little_and_is_cut_off(
    running: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.api.live.STALL_SECONDS", 0.1)
    running.history = endless = Endless()
    async with admin_of(running) as session, asyncio.timeout(30):
        url = url_of(session)
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((url.host, url.port))
            one.sendall(b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await endless.left.wait()
    assert endless.taken <= 2  # what waits is held in small buffers


async def test_totals_are_those_of_all_processes(running: Mirror) -> None:
    theirs = Metrics(version="1.2.3")
    for metrics in (running.metrics, theirs):
        metrics.observe(finished("hit", sent=1000))
        metrics.observe(finished("relayed", sent=100))
        metrics.observe(finished("miss", sent=10, kind="manifest"))
        metrics.observe(FillFinished("docker.io", "committed", 300, 1.0, {"neighbour": 50}))
        metrics.observe(ClosureEvicted("quota", 3, 4000))
        metrics.observe(ClosureEvicted("rm", 1, 5))
    running.metrics.include(lambda: [theirs.snapshot()])
    found = totals(running.metrics)
    assert (found.requests, found.sent, found.received, found.near) == (6, 2220, 2 * (250 + 100 + 10), 100)
    assert found.saved == found.sent - found.received
    async with admin_of(running) as admin, admin.get("/api/status") as answer:
        assert (await answer.json())["traffic"]["saved"] == found.saved
    assert (found.evicted, found.evicted_bytes) == (2, 8000)


async def test_more_received_than_sent_saves_nothing_and_owes_nothing(running: Mirror) -> None:
    running.metrics.observe(FillFinished("docker.io", "committed", 300, 1.0))
    assert totals(running.metrics).saved == 0


# The last hours.


async def test_the_last_hours_are_told_by_what_was_counted(
    admin: ClientSession, running: Mirror, watched: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("entrepot.watching.monotonic", lambda: now)
    watched = Watching(running)
    running.history = watched
    await watched.read()
    for outcome in ("hit", "hit", "stale", "miss"):
        running.metrics.observe(finished(outcome, sent=250))
    running.metrics.observe(finished("error", status=503))
    running.metrics.observe(FillFinished("docker.io", "committed", 250, 1.0))
    now = 5.0
    await watched.read()
    shown: dict[str, Any]
    for window in ("", "?window=1h", "?window=6h", "?window=24h"):
        async with admin.get(f"/api/history{window}") as answer:
            shown = await answer.json()
        (point,) = shown["points"]
        assert shown["step"] == 5.0
    assert (point["requests"], point["errors"], point["sent"], point["received"]) == (1.0, 0.2, 200.0, 50.0)
    assert (point["hit_ratio"], point["byte_hit_ratio"]) == (0.6, 0.75)
    assert 0.025 <= point["first_byte_p50"] <= 0.05
    for taken, packed in (("gzip", "gzip"), ("identity", None)):
        async with admin.get("/api/history", headers={"Accept-Encoding": taken}) as answer:
            assert (answer.headers.get("Content-Encoding"), await answer.json()) == (packed, shown)
    async with admin.get("/api/history?window=2h") as answer:
        assert answer.status == 400
        assert "1h, 6h, 24h" in (await answer.json())["errors"][0]["message"]
    assert point["used"] == 0


async def test_documents_that_cannot_be_made_are_told_once_and_come_again(
    admin: ClientSession, watched: Watching, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("entrepot.watching.LIVE_SECONDS", 0.01)
    monkeypatch.setattr("entrepot.watching.SOONEST_SECONDS", 0.01)
    asked, live = 0, watched.live

    async def fail_three_times() -> Live:
        nonlocal asked
        asked += 1
        if asked <= 3:
            raise RuntimeError("a fault")
        return await live()

    monkeypatch.setattr(watched, "live", fail_three_times)
    async with admin.get("/api/live") as answer:
        assert (await anext(documents(answer))).state == "ready"
    assert asked >= 4
    assert caplog.text.count("could not be put together") == 1


async def test_a_failure_to_read_leaves_a_gap_and_goes_on(
    running: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("entrepot.watching.STEP_SECONDS", 0.01)
    asked: list[None] = []
    went_on, counted = asyncio.Event(), running.metrics.totals

    def fail_once() -> dict[str, int]:
        asked.append(None)
        if len(asked) == 1:
            raise RuntimeError("a fault")
        went_on.set()
        return counted()

    monkeypatch.setattr(running.metrics, "totals", fail_once)
    async with watching(running), asyncio.timeout(30):
        await went_on.wait()
    assert "has a gap" in caplog.text
