"""Asking a neighbour over a real socket: what comes, and what of it is believed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from aiohttp import web

from metrics.events import NeighbourAnswered, NeighbourRequest
from proxy.cache.near import TagSaid
from proxy.fleet.protocol import ANSWER_HEADER, SAYS_HEADER
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    BadContent,
    BlobUnknown,
    GatewayTimeout,
    ManifestUnknown,
    RangeNotSatisfiable,
    RegistryError,
    Transient,
    Unavailable,
)
from proxy.oci.names import Tag
from proxy.oci.ranges import ByteRange
from tests.fleet.nodes import ALPINE, SECRET, TYPE, Answerer, Asker, Growing, Node, a_node, an_asker, read, serving

CONTENT = random.Random(4).randbytes(20 << 20)
SMALL = CONTENT[: 1 << 16]
LATEST = Tag("latest")


async def test_a_large_blob_comes_whole_with_what_is_known_of_it(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    digest = node.cache.store(CONTENT)
    stream = await asker.at(node, held=True).open_blob(ALPINE, digest)
    assert (stream.size, stream.start, stream.end) == (len(CONTENT), 0, len(CONTENT))
    assert (stream.proven, stream.anonymous) == (True, False)
    assert await read(stream) == CONTENT
    assert node.cache.asked == [(ALPINE, digest, True)]
    (event,) = asker.events
    assert isinstance(event, NeighbourRequest)
    assert (event.kind, event.outcome) == ("blob", "ok")


@pytest.mark.parametrize(
    ("span", "start", "end"),
    [(ByteRange(60000, None), 60000, 65536), (ByteRange(5, 9), 5, 10), (ByteRange(None, 7), 65529, 65536)],
)
async def test_a_part_of_a_blob_comes_alone(pair: tuple[Node, Asker], span: ByteRange, start: int, end: int) -> None:
    node, asker = pair
    stream = await asker.at(node).open_blob(ALPINE, node.cache.store(SMALL), span)
    assert (stream.size, stream.start, stream.end) == (len(SMALL), start, end)
    assert await read(stream) == SMALL[start:end]


async def test_a_late_range_follows_a_running_download_to_its_end(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(40_000)
    digest = node.cache.fill(growing)
    stream = await asker.at(node).open_blob(ALPINE, digest, ByteRange(30_000, None))
    chunks = stream.__aiter__()
    first = await chunks.__anext__()
    assert first == SMALL[30_000 : 30_000 + len(first)]
    growing.arrive()
    assert first + await read(stream) == SMALL[30_000:]


@pytest.mark.parametrize("span", [None, ByteRange(1000, None)])
async def test_a_download_of_unknown_size_is_followed_too(pair: tuple[Node, Asker], span: ByteRange | None) -> None:
    node, asker = pair
    growing = Growing(SMALL, sized=False)
    growing.arrive(2000)
    stream = await asker.at(node).open_blob(ALPINE, node.cache.fill(growing), span)
    assert stream.size is None
    growing.learn()
    growing.arrive()
    assert await read(stream) == (SMALL if span is None else SMALL[1000:])


async def test_a_part_is_given_alone_once_the_size_is_known(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    growing = Growing(SMALL, sized=False)
    asking = asyncio.create_task(asker.at(node).open_blob(ALPINE, node.cache.fill(growing), ByteRange(1000, None)))
    async with asyncio.timeout(30):
        await growing.waited.wait()
    growing.learn()
    growing.arrive()
    stream = await asking
    assert (stream.size, stream.start, stream.end) == (len(SMALL), 1000, len(SMALL))
    assert await read(stream) == SMALL[1000:]
    assert [event.sent for event in node.events if isinstance(event, NeighbourAnswered)] == [len(SMALL) - 1000]


async def test_only_what_is_stored_is_given_where_that_was_asked(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive()
    digest = node.cache.fill(growing)
    with pytest.raises(BlobUnknown):
        await asker.at(node, held=True).open_blob(ALPINE, digest)
    assert await read(await asker.at(node).open_blob(ALPINE, digest)) == SMALL


async def test_past_the_end_the_size_is_told(pair: tuple[Node, Asker]) -> None:  # P4
    node, asker = pair
    with pytest.raises(RangeNotSatisfiable) as caught:
        await asker.at(node).open_blob(ALPINE, node.cache.store(SMALL), ByteRange(len(SMALL), None))
    assert caught.value.size == len(SMALL)


async def test_an_empty_blob_is_one(pair: tuple[Node, Asker]) -> None:  # P6
    node, asker = pair
    assert await read(await asker.at(node).open_blob(ALPINE, node.cache.store(b""), ByteRange(0, None))) == b""


@pytest.mark.parametrize(
    ("error", "expected", "outcome"),
    [
        (GatewayTimeout("a node leads"), GatewayTimeout, "refused"),
        (Unavailable("the upstream fails"), Unavailable, "refused"),
        (BadContent("wrong bytes"), BadContent, "refused"),
        (BlobUnknown("gone"), BlobUnknown, "missing"),
    ],
)
async def test_what_a_node_raises_is_told(
    pair: tuple[Node, Asker], error: RegistryError, expected: type[RegistryError], outcome: str
) -> None:
    node, asker = pair
    node.cache.error = error
    with pytest.raises(expected, match=error.message) as caught:
        await asker.at(node).open_blob(ALPINE, Digest.of(b"x"))
    assert type(caught.value) is expected
    assert [event.outcome for event in asker.events if isinstance(event, NeighbourRequest)] == [outcome]


async def test_a_manifest_comes_with_what_is_known_of_it(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    body = b'{"schemaVersion": 2}'
    found = await asker.at(node).manifest(ALPINE, node.cache.publish(body))
    assert (found.body, found.descriptor) == (body, Descriptor(TYPE, Digest.of(body), len(body)))
    assert (found.anonymous, found.proven, found.servable) == (True, True, True)
    with pytest.raises(ManifestUnknown):
        await asker.at(node).manifest(ALPINE, Digest.of(b"another"))


async def test_a_manifest_that_does_not_match_its_digest_is_refused(pair: tuple[Node, Asker]) -> None:  # P43
    node, asker = pair
    with pytest.raises(BadContent, match="do not match"):
        await asker.at(node).manifest(ALPINE, node.cache.publish(b"{}", digest=Digest.of(b"asked for")))


async def test_a_tag_comes_as_it_was_heard(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    said = node.cache.tags[LATEST] = TagSaid(Descriptor(TYPE, Digest.of(b"x"), 9), "", 2.5)
    assert await asker.at(node).tag(ALPINE, LATEST) == said
    with pytest.raises(ManifestUnknown):
        await asker.at(node).tag(ALPINE, Tag("never"))


async def test_whether_a_node_has_an_image_is_known_without_its_bytes(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    whole, part = node.cache.publish(b"{}"), node.cache.publish(b"{ }", servable=False)
    one = asker.at(node)
    assert [await one.has_image(ALPINE, digest) for digest in (whole, part, Digest.of(b"x"))] == [True, False, False]
    assert {held for _, _, held in node.cache.asked} == {True}
    assert sum(event.sent for event in node.events if isinstance(event, NeighbourAnswered)) == 0
    assert not await asker.neighbours.at("http://127.0.0.1:9", held=True, still=None).has_image(ALPINE, whole)


async def test_a_node_is_alive_while_it_answers(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    assert await asker.neighbours.alive(node.url)
    assert not await asker.neighbours.alive("http://127.0.0.1:9")


async def test_one_connection_serves_many_questions() -> None:
    async with an_asker() as asker, a_node() as node:
        digest = node.cache.store(SMALL)
        for _ in range(5):
            assert await asker.neighbours.alive(node.url)
            assert await read(await asker.at(node).open_blob(ALPINE, digest)) == SMALL
            with pytest.raises(BlobUnknown):
                await asker.at(node).open_blob(ALPINE, Digest.of(b"x"))
    assert node.connections == 1


async def test_nobody_outside_the_neighbourhood_is_ever_connected_to() -> None:
    async with an_asker("10.0.0.0/8", "*.example") as asker, a_node() as node:
        with pytest.raises(Unavailable, match="no neighbour"):
            await asker.at(node).open_blob(ALPINE, node.cache.store(SMALL))
        assert not await asker.neighbours.alive(node.url.replace("127.0.0.1", "localhost"))
    assert node.connections == 0


async def test_no_proxy_of_the_environment_comes_between_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with a_node() as node, an_asker() as asker:
        assert await asker.neighbours.alive(node.url)


async def test_a_redirect_is_an_error_and_followed_by_nobody() -> None:
    async with an_asker() as asker, a_node() as node:

        async def elsewhere(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": node.url + request.raw_path})

        async with serving(elsewhere) as (url, _):
            with pytest.raises(Transient):
                await asker.neighbours.at(url, held=False, still=None).open_blob(ALPINE, node.cache.store(SMALL))
            assert not await asker.neighbours.alive(url)
    assert node.connections == 0


def forging(real: Answerer, change: Callable[[web.Response], web.Response]) -> Answerer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = await real(request)
        assert isinstance(response, web.Response)
        return change(response)

    return answer


def other_body(response: web.Response) -> web.Response:
    return web.Response(status=response.status, headers=response.headers, body=b'{"found":null,"message":"","age":0}')


def other_status(response: web.Response) -> web.Response:
    return web.Response(status=404, headers=response.headers, body=response.body)


def other_says(response: web.Response) -> web.Response:
    response.headers[SAYS_HEADER] = '{"proven":true,"servable":true}'
    return response


def no_signature(response: web.Response) -> web.Response:
    del response.headers[ANSWER_HEADER]
    return response


def nobody_knows(response: web.Response) -> web.Response:
    return web.Response(status=404, text="no such thing")


@pytest.mark.parametrize("change", [other_body, other_status, other_says, no_signature, nobody_knows])
async def test_a_forged_answer_is_believed_in_nothing(
    pair: tuple[Node, Asker], change: Callable[[web.Response], web.Response]
) -> None:
    node, asker = pair
    node.cache.tags[LATEST] = TagSaid(Descriptor(TYPE, Digest.of(b"x"), 9), "", 2.5)
    node.answer = forging(node.answer, change)
    with pytest.raises(BadContent):
        await asker.at(node).tag(ALPINE, LATEST)


async def test_an_answer_to_another_question_is_refused(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    node.cache.tags[LATEST] = TagSaid(None, "there is none", 0.0)
    kept: list[web.Response] = []
    real = node.answer

    async def first_again(request: web.BaseRequest) -> web.StreamResponse:
        if not kept:
            response = await real(request)
            assert isinstance(response, web.Response)
            kept.append(response)
        return web.Response(headers=kept[0].headers, body=kept[0].body)

    node.answer = first_again
    await asker.at(node).tag(ALPINE, LATEST)
    with pytest.raises(BadContent, match="signature"):
        await asker.at(node).tag(ALPINE, LATEST)


async def test_a_node_with_another_secret_is_not_alive_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_node(secret=b"the secret of others") as node, an_asker() as asker:
        assert not await asker.neighbours.alive(node.url)
        assert not await asker.neighbours.alive(node.url)
    (record,) = [record for record in caplog.records if record.message == "a node refuses this one"]
    assert "its fleet secret is another one" in record.__dict__["why"]
    assert SECRET.decode() not in repr(record.__dict__)


async def test_a_body_longer_than_allowed_is_not_read(pair: tuple[Node, Asker]) -> None:  # P45
    node, asker = pair
    node.cache.tags[LATEST] = TagSaid(None, "x" * (1 << 17), 0.0)
    with pytest.raises(BadContent, match="more than"):
        await asker.at(node).tag(ALPINE, LATEST)


async def test_where_nothing_listens_it_is_said_without_a_trace() -> None:
    async with an_asker() as asker:
        with pytest.raises(Unavailable, match=r"node 127.0.0.1:9 cannot be reached: connection refused"):
            await asker.neighbours.at("http://127.0.0.1:9", held=False, still=None).manifest(ALPINE, Digest.of(b"x"))


async def test_every_request_says_that_a_node_asks(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    real, heard = node.answer, list[str]()

    async def listening(request: web.BaseRequest) -> web.StreamResponse:
        heard.append(request.headers["Via"])
        return await real(request)

    node.answer = listening
    assert await asker.neighbours.alive(node.url)
    assert heard == ["1.1 entrepot"]
