"""The TLS of the public listener and towards neighbours: files read at start, and again when they change.

The one context that is held is given the new certificate; handshakes from then on use it, connections that exist stay
as they are. What is loaded into it has been proved in a context of its own first, from the same
bytes, so that a certificate whose key has not arrived yet never replaces a pair that works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from entrepot.config import TlsConfig
from proxy.cache.once import Background

LOOK_SECONDS = 5.0
log = logging.getLogger(__name__)


class TlsError(OSError):
    """Certificate or key cannot be used; tells which files and why."""


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files held when they were read together."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class _Role:
    """What a context is for: how a new one is made, and what is loaded into it, now and whenever files change."""

    made: Callable[[_Files], ssl.SSLContext]
    load: Callable[[ssl.SSLContext, _Files], None]


class KeptTls:
    """`context` for the listener, or for another role, and its renewal. Make it with `listening_tls`."""

    def __init__(self, config: TlsConfig, files: _Files, role: _Role | None = None) -> None:
        self._config = config
        self._files = files
        self._role = role or _LISTENER
        self.context = _context(config, files, self._role)

    async def renew(self) -> bool:
        """Look at the files, load what has changed, and tell whether it did. What cannot be used is logged."""
        try:
            files = await asyncio.to_thread(_read, self._config)
            if files == self._files:
                return False
            await asyncio.to_thread(_context, self._config, files, self._role)
            self._role.load(self.context, files)
        except OSError as error:
            log.error("the changed TLS files cannot be used, the old ones stay", extra={"why": str(error)})
            return False
        if self._files.client_ca != files.client_ca:
            log.warning("client_ca changed: what it adds is trusted now, what it drops only after a restart")
        self._files = files
        log.info("TLS files were read again", extra={"cert": str(self._config.cert)})
        return True


@asynccontextmanager
async def listening_tls(config: TlsConfig, seconds: float = LOOK_SECONDS) -> AsyncIterator[ssl.SSLContext]:
    """Give the context of the public listener, and look for new files every so many `seconds` meanwhile.

    TLS 1.2 and later; with `client_ca`, clients must show a certificate that it signed. Raises TlsError.
    """
    async with _kept(config, _LISTENER, seconds) as context:
        yield context


@asynccontextmanager
async def neighbour_tls(config: TlsConfig, seconds: float = LOOK_SECONDS) -> AsyncIterator[ssl.SSLContext]:
    """Give the context in which other nodes of the fleet are asked, and keep it as `listening_tls` does.

    The system's roots are trusted, and what is in our own `cert`: nodes may share a self-signed one. With `client_ca`,
    which the neighbours have too, our certificate is shown as a client's. Raises TlsError.
    """
    async with _kept(config, _NEIGHBOUR, seconds) as context:
        yield context


@asynccontextmanager
async def _kept(config: TlsConfig, role: _Role, seconds: float) -> AsyncIterator[ssl.SSLContext]:
    tls = KeptTls(config, await asyncio.to_thread(_read, config), role)
    async with Background() as background:
        background.create_task(_watch(tls, seconds), name="TLS files")
        yield tls.context


async def _watch(tls: KeptTls, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await tls.renew()


def _read(config: TlsConfig) -> _Files:
    def content(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise TlsError(f"{path} cannot be read: {error.strerror}") from None

    client_ca = content(config.client_ca) if config.client_ca is not None else None
    return _Files(content(config.cert), content(config.key), client_ca)


def _context(config: TlsConfig, files: _Files, role: _Role) -> ssl.SSLContext:
    context = role.made(files)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        role.load(context, files)
    except (ssl.SSLError, ValueError) as error:
        named = [str(path) for path in (config.cert, config.key, config.client_ca) if path is not None]
        reason = getattr(error, "reason", None) or error
        raise TlsError(f"TLS with {', '.join(named)} is impossible: {reason}") from None
    return context


def _listener(files: _Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_listener(context: ssl.SSLContext, files: _Files) -> None:
    _load_chain(context, files)
    if files.client_ca is not None:
        context.load_verify_locations(cadata=files.client_ca.decode("ascii", "replace"))


def _neighbour(files: _Files) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_neighbour(context: ssl.SSLContext, files: _Files) -> None:
    context.load_verify_locations(cadata=files.cert.decode("ascii", "replace"))
    if files.client_ca is not None:
        _load_chain(context, files)


def _load_chain(context: ssl.SSLContext, files: _Files) -> None:
    """Load bytes that were read once: the files themselves may change between one look and the next."""
    with _as_file("cert", files.cert) as cert, _as_file("key", files.key) as key:
        context.load_cert_chain(cert, key, password=_no_passphrase)


_LISTENER = _Role(_listener, _load_listener)
_NEIGHBOUR = _Role(_neighbour, _load_neighbour)


@contextmanager
def _as_file(name: str, content: bytes) -> Iterator[str]:
    """Give the path of a file in memory: OpenSSL's interface here takes nothing else, and a key belongs on no disk."""
    descriptor = os.memfd_create(name)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted: give one without a passphrase, in a file that only the mirror may read")
