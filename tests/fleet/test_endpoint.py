"""What nodes are answered, and what everybody else learns: nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from metrics.events import NeighbourAnswered
from proxy import fleet_endpoint
from proxy.fleet.protocol import ANSWER_HEADER, PING, REQUEST_HEADER, SAYS_HEADER, blob_target, manifest_target
from proxy.fleet.signing import Question, sign_request
from proxy.oci.digest import Digest
from proxy.oci.errors import NotFound, TooManyRequests, Unavailable
from tests.fleet.nodes import ALPINE, ASKER, SECRET, Growing, Node, a_node, an_asker

SMALL = bytes(range(256)) * 256
CHANGES = "/sync/v1/changes"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node() as one:
        yield one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def signed(to: str, target: str, method: str = "GET", *, span: str = "", ago: float = 0) -> dict[str, str]:
    question = Question(to, method, target, span, ASKER)
    return {REQUEST_HEADER: sign_request(SECRET, question, time.time() - ago, secrets.token_hex(16)).header}


async def fetch(
    http: aiohttp.ClientSession, node: Node, target: str, headers: dict[str, str], method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    url = URL(node.url + target, encoded=True)
    async with http.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status, dict(response.headers), await response.read()


async def test_without_a_signature_nobody_learns_whether_a_digest_exists(
    node: Node, http: aiohttp.ClientSession
) -> None:
    there, missing = node.cache.store(SMALL), Digest.of(b"x")
    answers = []
    for target in (blob_target(ALPINE, there, held=True), blob_target(ALPINE, missing, held=True), "/fleet/none", PING):
        for method in ("GET", "HEAD", "POST"):
            status, headers, body = await fetch(http, node, target, {}, method)
            answers.append((status, method == "HEAD" or body, ANSWER_HEADER in headers or SAYS_HEADER in headers))
    assert len(set(answers)) == 2  # with and without a body
    assert {(status, told) for status, _, told in answers} == {(401, False)}
    assert not node.cache.asked


@pytest.mark.parametrize(
    "headers",
    [
        lambda node, target: signed(node.url, target, ago=3600),
        lambda node, target: signed(node.url, target, ago=-3600),
        lambda node, target: signed("http://127.0.0.1:7", target),
        lambda node, target: signed(node.url, target + "&held=1"),
        lambda node, target: signed(node.url, target, "HEAD"),
        lambda node, target: signed(node.url, target) | {"Range": "bytes=5-"},
        lambda node, target: signed(node.url, target, span="bytes=5-"),
    ],
    ids=["late", "early", "for another node", "another target", "another method", "a range added", "a range removed"],
)
async def test_a_signature_for_anything_else_is_refused(
    node: Node, http: aiohttp.ClientSession, headers: object
) -> None:
    assert callable(headers)
    target = blob_target(ALPINE, node.cache.store(SMALL), held=False)
    status, answered, body = await fetch(http, node, target, headers(node, target))
    assert status == 403
    assert b"DENIED" in body
    assert ANSWER_HEADER not in answered
    assert not node.cache.asked


async def test_a_request_heard_elsewhere_is_refused_by_every_other_node(http: aiohttp.ClientSession) -> None:
    async with a_node() as one, a_node() as two:
        digest = one.cache.store(SMALL)
        two.cache.store(SMALL)
        target = blob_target(ALPINE, digest, held=True)
        headers = signed(one.url, target)
        assert (await fetch(http, one, target, headers))[0] == 200
        assert (await fetch(http, two, target, headers))[0] == 403
        assert not two.cache.asked


async def test_a_newer_node_is_refused_and_the_older_one_is_told_to_upgrade_once(
    node: Node, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {REQUEST_HEADER: f"v=2;node={ASKER};something=else"}
    for _ in range(2):
        status, _, body = await fetch(http, node, PING, headers)
        assert status == 505
        assert f"node {ASKER} speaks fleet protocol 2, {node.url} speaks 1: upgrade {node.url}".encode() in body
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.__dict__["node"] == ASKER


async def test_the_log_is_not_filled_by_whoever_claims_to_be_newer(
    node: Node, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        await fetch(http, node, PING, {REQUEST_HEADER: f"v=2;node=http://10.0.0.{number}:5000"})
    assert len(caplog.records) == 64


async def test_a_node_of_another_version_is_known_by_its_refusal(caplog: pytest.LogCaptureFixture) -> None:
    async with a_node() as node, an_asker() as asker:

        async def newer(request: web.BaseRequest) -> web.StreamResponse:
            body = b'{"errors": [{"code": "UNAVAILABLE", "message": "upgrade http://127.0.0.1:1"}]}'
            return web.Response(status=505, body=body)

        node.answer = newer
        assert not await asker.neighbours.alive(node.url)
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "upgrade http://127.0.0.1:1" in record.__dict__["why"]


async def test_unknown_paths_are_answered_404_to_nodes(node: Node) -> None:
    async with an_asker() as asker:
        for target in ("/fleet/v1/", "/fleet/v1/secrets", "/fleet/v2/ping", "/sync/v1/changes", "/fleet/v1/pingpong"):
            with pytest.raises(NotFound, match="UNSUPPORTED"):
                await asker.neighbours.ask(node.url, "GET", target)


@pytest.mark.parametrize(
    "target",
    [
        "/fleet/v1/blobs/sha256:00?repository=docker.io/library/alpine",
        f"/fleet/v1/blobs/{Digest.of(b'x')}",
        f"/fleet/v1/blobs/{Digest.of(b'x')}?repository=docker.io",
        f"/fleet/v1/blobs/{Digest.of(b'x')}?repository=docker.io/UPPER",
        f"/fleet/v1/manifests/{Digest.of(b'x')}?repository=/a",
        "/fleet/v1/tags/..?repository=docker.io/library/alpine",
        "/fleet/v1/tags/a?repository",
    ],
)
async def test_what_names_nothing_is_refused(node: Node, http: aiohttp.ClientSession, target: str) -> None:  # P8
    status, headers, _ = await fetch(http, node, target, signed(node.url, target))
    assert status == 400
    assert ANSWER_HEADER in headers
    assert not node.cache.asked


async def test_nodes_only_read(node: Node, http: aiohttp.ClientSession) -> None:
    assert (await fetch(http, node, PING, signed(node.url, PING, "DELETE"), "DELETE"))[0] == 405


async def test_head_tells_what_is_known_and_sends_nothing(node: Node) -> None:
    blob, manifest = node.cache.store(SMALL), node.cache.publish(b"{}")
    async with an_asker() as asker:
        for target, size in (
            (blob_target(ALPINE, blob, held=True), len(SMALL)),
            (manifest_target(ALPINE, manifest, held=True), 2),
        ):
            async with asker.neighbours.request(node.url, "HEAD", target) as answer:
                assert (answer.says.size, answer.says.proven) == (size, True)
                assert await answer.response.read() == b""
    assert [event.sent for event in node.events if isinstance(event, NeighbourAnswered)] == [0, 0]


async def test_what_is_added_gets_verified_requests_only_and_its_answers_are_signed(
    http: aiohttp.ClientSession,
) -> None:
    heard: list[str] = []

    async def changes(request: web.BaseRequest) -> web.Response:
        heard.append(request.raw_path)
        if "busy" in request.raw_path:
            raise TooManyRequests("later")
        return web.Response(body=SMALL, headers={"Content-Encoding": "x-own", "X-Cursor": "7"})

    async with a_node(more={CHANGES: changes}) as node, an_asker() as asker:
        assert (await fetch(http, node, CHANGES, {REQUEST_HEADER: "v=1"}))[0] == 401
        assert not heard
        target = f"{CHANGES}?since=a:1"
        async with asker.neighbours.request(node.url, "GET", target, {"Accept": "x/y"}) as answer:
            assert answer.headers["X-Cursor"] == "7"
            assert await answer.read() == SMALL
        assert heard == [target]
        with pytest.raises(Unavailable, match=r"429.*later"):
            await asker.neighbours.ask(node.url, "GET", f"{CHANGES}?busy")
        with pytest.raises(NotFound):
            await asker.neighbours.ask(node.url, "GET", f"{CHANGES}/more")


async def test_a_failure_nobody_foresaw_is_logged_and_told_signed(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(node.cache, "tags")
    async with an_asker() as asker:
        with pytest.raises(Unavailable, match="500"):
            await asker.neighbours.ask(node.url, "GET", "/fleet/v1/tags/a?repository=docker.io/library/alpine")
    assert [record.message for record in caplog.records] == ["a node's request failed"]


async def test_too_many_at_once_are_sent_elsewhere_and_pings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_endpoint, "MOST_AT_ONCE", 1)
    begun, end = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.Response:
        begun.set()
        await end.wait()
        return web.Response(body=b"")

    async with a_node(more={CHANGES: slow}) as node, an_asker() as asker:
        digest = node.cache.store(SMALL)
        first = asyncio.create_task(asker.neighbours.ask(node.url, "GET", CHANGES))
        await begun.wait()
        with pytest.raises(Unavailable, match="too many"):
            await asker.at(node).open_blob(ALPINE, digest)
        assert await asker.neighbours.alive(node.url)
        end.set()
        (await first).close()
        await (await asker.at(node).open_blob(ALPINE, digest)).aclose()


async def test_headers_that_do_not_leave_in_time_are_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:  # P26
    monkeypatch.setattr(fleet_endpoint, "HEADERS_SECONDS", 0.1)
    async with a_node() as node, an_asker() as asker:
        node.cache.gate = asyncio.Event()
        with pytest.raises(Unavailable, match="no answer in"):
            await asker.at(node).manifest(ALPINE, Digest.of(b"x"))


async def test_a_body_may_take_longer_than_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_endpoint, "HEADERS_SECONDS", 1.0)
    async with a_node() as node, an_asker() as asker:
        growing = Growing(SMALL)
        growing.arrive(1000)
        stream = await asker.at(node).open_blob(ALPINE, node.cache.fill(growing))
        assert await stream.__anext__()
        await asyncio.sleep(1.2)  # past the limit of headers
        growing.arrive()
        assert sum([len(chunk) async for chunk in stream]) > 0
        assert stream.end == len(SMALL)


async def test_clients_go_to_the_face_and_nodes_to_the_endpoint(node: Node, http: aiohttp.ClientSession) -> None:
    for target in ("/v2/", "/v2/fleet/manifests/a", "/fleet", "/", "/x/fleet/v1/ping", "//fleet/v1/ping", CHANGES):
        status, _, body = await fetch(http, node, target, {})
        assert (status, body) == (200, b"the face"), target
    for target in (PING, "/fleet/", CHANGES):
        assert (await fetch(http, node, target, {REQUEST_HEADER: "v=1"}))[0] == 401


async def test_a_node_answers_only_those_who_ask_the_url_that_it_advertises() -> None:
    async with a_node(own_url="http://127.0.0.1:6") as node, an_asker() as asker:
        assert not await asker.neighbours.alive(node.url)
