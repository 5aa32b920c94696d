"""What proves who asks: tokens in files, certificates, and the TLS of a link. Secrets stay in here.

A token file holds one token a line, with comments after `#`; two tokens allow rotation. Whoever asks shows the first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")


class LinkFileError(OSError):
    """A token or certificate that cannot be used; tells which file and why, never what it holds."""


def read_tokens(text: str) -> tuple[str, ...]:
    """Return the tokens of a file. Raises ValueError for one that is none, or a file without any."""
    tokens = []
    for number, line in enumerate(text.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"line {number} is no token: visible ASCII characters without spaces, at most 1024")
        tokens.append(token)
    if not tokens:
        raise ValueError("it holds no token: write one a line")
    return tuple(tokens)


def hash_token(token: str) -> bytes:
    """Return what is kept of a token to compare others with."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def hash_tokens(text: str) -> Sequence[bytes]:
    """Return the hashes of the tokens of a file. Raises ValueError."""
    return tuple(hash_token(token) for token in read_tokens(text))


@dataclass(frozen=True, slots=True)
class LinkFiles:
    """The files of a link: the token to show, who vouches for the region, the certificate to show (PEM)."""

    token: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes when one of them does; one that is gone counts as a state too."""
        return tuple(_stat(path) for path in (self.token, self.ca, self.cert, self.key))


class Credentials:
    """`token`, and the `tls` of a link (None: plain HTTP). Make it with `open`; `renew` reads what has changed.

    `generation` grows whenever something was read again.
    """

    def __init__(self, files: LinkFiles, tls: ssl.SSLContext | None) -> None:
        self._files = files
        self._signature = files.signature()
        self._renewing = asyncio.Lock()
        self.tls = tls
        self.token: str | None = None
        self.generation = 0

    @classmethod
    async def open(cls, files: LinkFiles, *, https: bool) -> Self:
        """Read the files. Raises LinkFileError."""
        credentials = cls(files, await asyncio.to_thread(ssl.create_default_context) if https else None)
        await asyncio.to_thread(credentials._load)
        return credentials

    async def renew(self, refused: int) -> bool:
        """Tell whether there is something else to show than what was refused, of the generation `refused`.

        Raises LinkFileError for files that have changed and cannot be used.
        """
        async with self._renewing:
            if self.generation == refused and await asyncio.to_thread(self._reload):
                self.generation += 1
            return self.generation != refused

    def _reload(self) -> bool:
        signature = self._files.signature()
        if signature == self._signature:
            return False
        self._load()
        self._signature = signature
        return True

    def _load(self) -> None:
        files = self._files
        if files.token is not None:
            try:
                self.token = read_tokens(files.token.read_text())[0]
            except OSError as error:
                raise LinkFileError(f"{files.token} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise LinkFileError(f"{files.token} is not UTF-8 text") from None
            except ValueError as error:
                raise LinkFileError(f"{files.token}: {error}") from None
        if self.tls is None:
            return
        try:
            if files.ca is not None:
                self.tls.load_verify_locations(cafile=str(files.ca))
            if files.cert is not None:
                key = None if files.key is None else str(files.key)
                self.tls.load_cert_chain(str(files.cert), key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            named = ", ".join(str(path) for path in (files.ca, files.cert, files.key) if path is not None)
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise LinkFileError(f"TLS with {named} is impossible: {reason}") from None


def _stat(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted: give one without a passphrase, in a file that only the mirror may read")
