"""Connections that send nothing, half a request or too much, or take nothing, do not stay (P45)."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiofastnet
import pytest
import uvloop
from aiohttp import web

from proxy import server, stall
from proxy.server import Server, connection_bound, listen

PING = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def pong(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"pong")


@asynccontextmanager
async def listening(handler: Handler = pong, **options: float) -> AsyncIterator[int]:
    runner = web.ServerRunner(Server(handler, **options), shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 30)


async def drip(writer: asyncio.StreamWriter, head: bytes) -> None:
    for byte in head:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> asyncio.Runner:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.15)
    monkeypatch.setattr(server, "KEEPALIVE_SECONDS", 60)
    monkeypatch.setattr(server, "DRAIN_SECONDS", 0.15)
    factory = aiofastnet.loop_factory(uvloop.new_event_loop) if request.param == "uvloop" else None
    return asyncio.Runner(loop_factory=factory)


@pytest.mark.parametrize("sent", [b"", b"GET /v2/ HTTP/1.1\r\nHost:", b"\r\n", b"\x16\x03"])
def test_a_head_that_is_never_whole_ends_its_connection(on_loop: asyncio.Runner, sent: bytes) -> None:  # P45
    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(sent)
            assert await ended(reader) == b"" or sent == b"\x16\x03"
            assert time.monotonic() - began < 5

    with on_loop as runner:
        runner.run(test())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
def test_a_handshake_that_is_never_whole_ends_its_connection(on_loop: asyncio.Runner, sent: bytes) -> None:  # P45
    async def test() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with socket.create_server(("127.0.0.1", 0)) as bound:
            bound.setblocking(False)
            listening = await listen(Server(pong), bound, context)
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            began = time.monotonic()
            writer.write(sent)
            assert await ended(reader) == b""
            assert time.monotonic() - began < 5
            writer.close()
            listening.close()

    with on_loop as runner:
        runner.run(test())


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"Content-Length: +5\r\n\r\nhello",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"X: a\r\n b\r\n\r\n",
    ],
)
async def test_what_a_proxy_may_frame_otherwise_is_refused_with_all_behind_it(framing: bytes) -> None:
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PING[:-2] + framing + PING)
        answer = await ended(reader)
        assert answer.count(b"HTTP/1.") == 1
        assert b" 400 Bad Request\r\n" in answer
        assert b"pong" not in answer
        writer.close()


def test_a_compressed_body_is_not_expanded(on_loop: asyncio.Runner) -> None:  # P45
    seen: list[int] = []

    async def count(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(len(await request.content.read()))
        return web.Response(body=b"pong")

    async def test() -> None:
        body = gzip.compress(bytes(1 << 20))
        head = (
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
        )
        async with listening(count) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head % len(body) + body)
            assert (await ended(reader)).startswith(b"HTTP/1.1 200")
            assert seen == [len(body)]
            writer.close()

    with on_loop as runner:
        runner.run(test())


def test_a_head_that_drips_ends_its_connection(on_loop: asyncio.Runner) -> None:  # P45
    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PING)
            assert b"pong" in await asyncio.wait_for(reader.readuntil(b"pong"), 30)
            began = time.monotonic()
            with pytest.raises(ConnectionError):
                await drip(writer, b"GET /v2/ HTTP/1.1\r\nX: " + b"y" * 1000)
            assert time.monotonic() - began > 0.1

    with on_loop as runner:
        runner.run(test())


def test_half_a_request_behind_a_whole_one_does_not_stay_either(on_loop: asyncio.Runner) -> None:  # P45
    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(PING + b"GET /v2/ HTTP")
            assert b"pong" in await ended(reader)
            assert time.monotonic() - began < 5

    with on_loop as runner:
        runner.run(test())


def test_an_idle_connection_outlives_the_heads_time(
    on_loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(server, "KEEPALIVE_SECONDS", 2)

    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in (PING[:9], PING[9:]):  # a head in two pieces, too
                writer.write(piece)
                await asyncio.sleep(0.02)
            await asyncio.wait_for(reader.readuntil(b"pong"), 30)
            await asyncio.sleep(0.7)
            writer.write(PING)
            await asyncio.wait_for(reader.readuntil(b"pong"), 30)
            assert await ended(reader) == b""  # the idle time is over

    with on_loop as runner:
        runner.run(test())


def test_an_answer_that_takes_long_is_no_late_head(
    on_loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(1.3)
        return web.Response(body=b"pong")

    async def test() -> None:
        async with listening(slow) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in (PING[:9], PING[9:]):
                writer.write(piece)
                await asyncio.sleep(0.02)
            await asyncio.wait_for(reader.readuntil(b"pong"), 30)

    with on_loop as runner:
        runner.run(test())


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_a_body_that_never_ends_ends_its_connection(on_loop: asyncio.Runner, method: bytes) -> None:  # P45
    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            began = time.monotonic()
            writer.write(method + b" /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 100_000)
            assert b"200 OK" in await ended(reader)
            assert time.monotonic() - began < 5

    with on_loop as runner:
        runner.run(test())


def test_a_small_body_is_read_and_the_connection_goes_on(on_loop: asyncio.Runner) -> None:  # P45
    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
                await asyncio.wait_for(reader.readuntil(b"pong"), 30)

    with on_loop as runner:
        runner.run(test())


def test_an_answer_of_which_nothing_is_taken_is_cut_off(
    on_loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    monkeypatch.setattr(stall, "STALL_SECONDS", 0.1)

    async def large(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * (8 << 20))

    async def test() -> None:
        async with listening(large) as port:
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, PING)
                await asyncio.sleep(0.5)
                got = 0
                with contextlib.suppress(ConnectionError):
                    while chunk := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 30):
                        got += len(chunk)
                assert got < 8 << 20

    with on_loop as runner:
        runner.run(test())


async def test_one_connection_too_many_is_refused_and_said_once(caplog: pytest.LogCaptureFixture) -> None:  # P45
    async with listening(max_connections=2) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in held:
            writer.write(PING)
            await asyncio.wait_for(reader.readuntil(b"pong"), 30)
        with caplog.at_level(logging.WARNING, "proxy.server"):
            for _ in range(3):
                reader, _ = await asyncio.open_connection("127.0.0.1", port)
                answer = await ended(reader)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"Retry-After" in answer
        assert [record.message for record in caplog.records if "too many connections" in record.message] == [
            "too many connections: new ones are refused; raise the limit of open files (ulimit -n)"
        ]
        held[0][1].write(PING)
        await asyncio.wait_for(held[0][0].readuntil(b"pong"), 30)


@pytest.mark.parametrize(("descriptors", "connections"), [(1024, 384), (1 << 20, 524_160), (256, 64)])
def test_connections_leave_descriptors_for_files(descriptors: int, connections: int) -> None:  # P45
    assert connection_bound(descriptors) == connections
