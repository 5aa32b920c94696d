"""The link between regions does what the scenarios take for granted of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.link import Link

KIB = 1024


@asynccontextmanager
async def echoing(delay: float = 0.0, rate: float | None = None) -> AsyncIterator[Link]:
    """A link to a server that sends back what it is sent, and ends where the client does."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(64 * KIB):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Link(f"http://127.0.0.1:{port}", delay=delay, rate=rate) as link:
        yield link
    server.close()


@asynccontextmanager
async def connected(link: Link) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_all_bytes_pass_and_are_counted_each_way_and_the_end_too() -> None:
    data = bytes(range(256)) * 3 * KIB
    async with echoing() as link, connected(link) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        assert (link.up.bytes, link.down.bytes, link.connections) == (len(data), len(data), 1)


async def test_each_way_is_delayed() -> None:
    async with echoing(delay=0.05) as link, connected(link) as (reader, writer):
        began = asyncio.get_running_loop().time()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert asyncio.get_running_loop().time() - began >= 0.1


async def test_all_connections_share_the_rate() -> None:
    async with echoing(rate=400 * KIB) as link, connected(link) as one, connected(link) as other:
        began = asyncio.get_running_loop().time()
        for _, writer in (one, other):
            writer.write(bytes(40 * KIB))
        for reader, _ in (one, other):
            await reader.readexactly(40 * KIB)
        assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_reset_ends_every_connection_and_admits_new_ones() -> None:
    async with echoing() as link:
        async with connected(link) as (reader, writer):
            writer.write(b"ping")
            await reader.readexactly(4)
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        async with connected(link) as (reader, writer):
            writer.write(b"pong")
            assert await reader.readexactly(4) == b"pong"


async def test_an_orderly_cut_is_an_end_and_no_error() -> None:
    async with echoing() as link, connected(link) as (reader, writer):
        writer.write(b"ping")
        await reader.readexactly(4)
        link.cut(reset=False)
        assert await reader.read(-1) == b""


async def test_a_cut_falls_at_the_byte_that_was_named() -> None:
    async with echoing() as link, connected(link) as (reader, writer):
        link.cut_after(100_000)
        writer.write(bytes(300_000))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(300_000)
        assert link.down.bytes == 100_000


async def test_a_partition_is_silence_that_loses_nothing() -> None:
    async with echoing() as link, connected(link) as (reader, writer):
        writer.write(b"before")
        await reader.readexactly(6)
        link.partition()
        writer.write(b"meanwhile")
        async with connected(link) as (new_reader, new_writer):
            new_writer.write(b"new")
            await link.wait_connections(2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            assert link.down.bytes == 6
            link.heal()
            assert await new_reader.readexactly(3) == b"new"
        assert await reader.readexactly(9) == b"meanwhile"
