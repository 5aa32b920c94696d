"""Leaving sendfile early, on the loop that the mirror runs on: never a byte of another file."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiofastnet
import pytest
import uvloop
from aiohttp import web

from proxy import stall
from proxy.cache.reader import FileReader
from proxy.oci.digest import Digest
from proxy.sendfile import send_file
from proxy.server import Server

MIB = 1 << 20
OURS, OTHERS = b"\x0f", b"\xf0"


def on_the_mirrors_loop(test: Coroutine[Any, Any, None]) -> None:
    """Run `test` on uvloop with aiofastnet's transports, as `entrepot serve` does."""
    with asyncio.Runner(loop_factory=aiofastnet.loop_factory(uvloop.new_event_loop)) as runner:
        runner.run(test)


class Sender:
    """A handler that sends one file, and keeps the tasks that do so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.tasks: list[asyncio.Task[Any]] = []
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        reader = FileReader(Digest.of(b""), os.open(self.path, os.O_RDONLY), self.size, "hit")
        try:
            response = web.StreamResponse(headers={"Content-Length": str(self.size)})
            writer = await response.prepare(request)
            assert writer is not None
            self.begun.set()
            await send_file(request, writer, reader, 0, self.size, lambda count: None)
            await response.write_eof()
            return response
        finally:
            reader.close()
            self.ended.set()


class OtherFiles:
    """Opens files of others over and over, so that a number that was closed is soon another file's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[int] = []

    def take(self) -> None:
        self.open.extend(os.open(self.path, os.O_RDONLY) for _ in range(32))

    def close(self) -> None:
        for fd in self.open:
            os.close(fd)
        self.open.clear()


async def slow_client(port: int) -> socket.socket:
    """Connect with a small window and ask; read nothing yet."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


async def drain(client: socket.socket) -> bytes:
    """Read to the end of the connection, return the body."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    with client:
        try:
            while chunk := await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 30):
                got += chunk
        except ConnectionResetError:
            pass
    return bytes(got).partition(b"\r\n\r\n")[2]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.write_bytes(OURS * (4 * MIB))
    others.write_bytes(OTHERS * (4 * MIB))
    return ours, others


async def started(sender: Sender) -> tuple[web.ServerRunner, int]:
    runner = web.ServerRunner(Server(sender), shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


@pytest.mark.parametrize("how", ["cancelled", "timeout", "shutdown"])
def test_leaving_at_any_moment_never_sends_a_byte_of_another_file(
    files: tuple[Path, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = files
    if how == "timeout":
        monkeypatch.setattr(stall, "STALL_SECONDS", 0.05)

    async def test() -> None:
        for _ in range(20):
            sender, other = Sender(ours), OtherFiles(others)
            runner, port = await started(sender)
            client = await slow_client(port)
            await asyncio.wait_for(sender.begun.wait(), 30)
            await asyncio.sleep(random.uniform(0, 0.02))
            if how == "cancelled":
                sender.tasks[0].cancel()
            elif how == "shutdown":
                await runner.cleanup()
            await asyncio.wait_for(sender.ended.wait(), 30)
            other.take()
            body = await drain(client)
            other.close()
            assert len(body) < 4 * MIB
            assert body == OURS * len(body)
            await runner.cleanup()

    on_the_mirrors_loop(test())


def test_a_client_that_goes_away_does_not_disturb_the_next(files: tuple[Path, Path]) -> None:
    ours, others = files

    async def test() -> None:
        sender, other = Sender(ours), OtherFiles(others)
        runner, port = await started(sender)
        for _ in range(20):
            sender.ended.clear()
            leaving = await slow_client(port)
            await asyncio.wait_for(sender.begun.wait(), 30)
            leaving.close()
            staying = await slow_client(port)
            other.take()
            assert await asyncio.wait_for(asyncio.create_task(whole(staying)), 30) == OURS * (4 * MIB)
            other.close()
        await runner.cleanup()

    on_the_mirrors_loop(test())


async def whole(client: socket.socket) -> bytes:
    """Read a body of 4 MiB."""
    loop = asyncio.get_running_loop()
    got = bytearray()
    with client:
        while len(got.partition(b"\r\n\r\n")[2]) < 4 * MIB:
            got += await loop.sock_recv(client, 1 << 20)
    return bytes(got).partition(b"\r\n\r\n")[2]


def test_a_short_file_closes_the_connection_and_promises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(OURS * MIB)

    async def test() -> None:
        sender = Sender(path)
        sender.size = 2 * MIB
        runner, port = await started(sender)
        body = await drain(await slow_client(port))
        assert body == OURS * len(body)
        assert len(body) <= MIB
        await runner.cleanup()

    on_the_mirrors_loop(test())


def test_a_slow_client_that_goes_on_taking_is_not_cut_off(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    ours, _ = files
    monkeypatch.setattr(stall, "STALL_SECONDS", 1.0)

    async def test() -> None:
        sender = Sender(ours)
        runner, port = await started(sender)
        client = await slow_client(port)
        loop = asyncio.get_running_loop()
        got = 0
        with client:
            for _ in range(150):
                got += len(await asyncio.wait_for(loop.sock_recv(client, 2000), 30))
                await asyncio.sleep(0.02)
            assert not sender.ended.is_set()  # long past the stall time, and not one slice further
        assert 100 * 1000 < got < 2 * MIB
        await runner.cleanup()

    on_the_mirrors_loop(test())
