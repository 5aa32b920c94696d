"""TLS of the public listener: versions, client certificates, and new files without a restart."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiofastnet
import pytest
import trustme
import uvloop
from aiohttp import web
from cryptography import x509

from entrepot import tls
from entrepot.config import TlsConfig
from entrepot.tls import TlsError, listening_tls
from proxy.sendfile import send_file


class Files:
    """Certificate and key in a folder, replaced as a tool that renews them does: one after the other."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self.authority = authority
        self.config = TlsConfig(cert=folder / "tls.crt", key=folder / "tls.key")
        self.serial = self.issue()

    def issue(self, *, with_key: bool = True) -> int:
        """Write a new pair, or only its certificate; return its serial number."""
        leaf = self.authority.issue_cert("127.0.0.1")
        self.config.cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        if with_key:
            self.config.key.write_bytes(leaf.private_key_pem.bytes())
        self.pending = leaf.private_key_pem.bytes()
        return serial_of(leaf.cert_chain_pems[0].bytes())


def serial_of(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


def trusting(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context()
    files.authority.configure_trust(context)
    return context


@asynccontextmanager
async def echo(context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve lines back; give the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Connection:
    """A TLS connection, and the serial number of the certificate that it was shown."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        shown = writer.get_extra_info("peercert")
        self.serial = int(shown["serialNumber"], 16)

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    async def works(self) -> bool:
        self.writer.write(b"hello\n")
        return await asyncio.wait_for(self.reader.readline(), 30) == b"hello\n"


async def test_new_files_are_used_by_new_connections_and_old_ones_stay(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = asyncio.Event()
    real = tls.KeptTls.renew

    async def told(self: tls.KeptTls) -> bool:
        if changed := await real(self):
            renewed.set()
        return changed

    monkeypatch.setattr(tls.KeptTls, "renew", told)
    async with listening_tls(files.config, 0.01) as context, echo(context) as port:
        old = await Connection.open(port, trusting(files))
        assert old.serial == files.serial
        serial = files.issue()
        await asyncio.wait_for(renewed.wait(), 30)
        new = await Connection.open(port, trusting(files))
        assert new.serial == serial != old.serial
        assert await old.works()
        assert await new.works()


async def test_a_certificate_without_its_key_changes_nothing_and_the_key_completes_it(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = tls.KeptTls(files.config, tls._read(files.config))
    async with echo(keeper.context) as port:
        serial = files.issue(with_key=False)
        assert not await keeper.renew()
        assert "the old ones stay" in caplog.text
        assert (await Connection.open(port, trusting(files))).serial == files.serial
        put(files.config.key, files.pending)
        assert await keeper.renew()
        assert (await Connection.open(port, trusting(files))).serial == serial
        put(files.config.key, b"no key")
        assert not await keeper.renew()
        assert (await Connection.open(port, trusting(files))).serial == serial


async def test_a_lack_of_descriptors_is_told_and_passes(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    keeper = tls.KeptTls(files.config, tls._read(files.config))
    files.issue()
    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", none_left)
        assert not await keeper.renew()
    assert "Too many open files" in repr([record.__dict__ for record in caplog.records])
    assert await keeper.renew()


async def test_below_tls_1_2_nobody_is_served(files: Files) -> None:
    async with listening_tls(files.config) as context:
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_with_client_ca_only_its_clients_are_served(files: Files, tmp_path: Path) -> None:
    staff, strangers = trustme.CA(), trustme.CA()
    staff.cert_pem.write_to_path(tmp_path / "staff.pem")
    config = TlsConfig(cert=files.config.cert, key=files.config.key, client_ca=tmp_path / "staff.pem")
    async with listening_tls(config) as context, echo(context) as port:
        trusted = trusting(files)
        staff.issue_cert("ann@example.org").configure_cert(trusted)
        assert await (await Connection.open(port, trusted)).works()
        for issuer in (None, strangers):
            other = trusting(files)
            if issuer is not None:
                issuer.issue_cert("eve@example.org").configure_cert(other)
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):  # TLS 1.3 tells with the first read
                assert await (await Connection.open(port, other)).works()


@pytest.mark.parametrize("broken", ["cert", "key", "client_ca"])
async def test_files_that_cannot_be_used_are_refused_at_start(files: Files, tmp_path: Path, broken: str) -> None:
    put(tmp_path / "nonsense", b"nonsense")
    paths = {"cert": files.config.cert, "key": files.config.key, "client_ca": files.config.cert}
    for bad, message in ((tmp_path / "nonsense", "is impossible"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(TlsError, match=message):
            async with listening_tls(TlsConfig(**{**paths, broken: bad})):
                pass


class Whole:
    """A file as a body."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = path.stat().st_size

    def fileno(self) -> int:
        return self._file.fileno()

    async def limit(self, position: int) -> int:
        return self.size


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_files_leave_over_tls_whole_and_in_small_pieces_on_the_loop_that_serves(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(9 << 20)
    written: list[int] = []
    put(tmp_path / "blob", data)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        writer = await response.prepare(request)
        assert writer is not None
        write = writer.write

        async def recorded(chunk: bytes) -> None:
            written.append(len(chunk))
            await write(chunk)

        monkeypatch.setattr(writer, "write", recorded, raising=False)
        await send_file(request, writer, Whole(tmp_path / "blob"), 0, len(data), lambda count: None)
        return response

    async def scenario() -> str:
        async with listening_tls(files.config) as context:
            server = await asyncio.get_running_loop().create_server(web.Server(handler), "127.0.0.1", 0, ssl=context)
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(files))
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            body = await asyncio.wait_for(reader.readexactly(len(data)), 60)
            writer.close()
            server.close()
            return hashlib.sha256(body).hexdigest()

    with asyncio.Runner(loop_factory=aiofastnet.loop_factory(uvloop.new_event_loop)) as runner:
        assert runner.run(scenario()) == hashlib.sha256(data).hexdigest()
    assert max(written) <= 1 << 19  # P45: what a client that takes nothing can hold
