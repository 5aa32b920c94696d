"""Keys that sign bundles, and what is trusted: Ed25519 (RFC 8032), PEM files as openssl writes them.

docs/bundle-format.md tells how to make and check a signature without entrepot. Which keys are trusted here is the
configuration's to say; whether a bundle's bytes are those of its plan is `volume`'s.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from proxy.regions.scope import Scope
from sync.bundle.errors import BundleError, Untrusted
from sync.bundle.plan import Sealed

FORMAT = "entrepot-signature/1"
CONTEXT = b"entrepot-bundle-plan/1\n"
"""Precedes the plan in what is signed, so that no signature of anything else is one of a plan."""
MAX_KEY_FILE = 16 << 10

_EVERYTHING = Scope.of(["*"])


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    key: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    signature: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9+/]{86}==\Z")]


_decode = msgspec.json.Decoder(_Signature).decode


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The half of a key that checks signatures."""

    _key: Ed25519PublicKey

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a PEM file. Raises BundleError for whatever is no public key of Ed25519, or cannot be read."""
        body = _read(path)
        if b"PRIVATE KEY" in body:
            raise BundleError(
                f"{path} holds a private key: give the public one (*.pub), and keep that file to yourself"
            )
        try:
            key = serialization.load_pem_public_key(body)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise BundleError(f"{path} holds no public key of Ed25519 in PEM, as entrepot key new writes it")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write a PEM file of mode 0644. Raises BundleError where there is one already, or it cannot be written."""
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        _write(path, self._key.public_bytes(serialization.Encoding.PEM, public), 0o644)

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the key in DER (SubjectPublicKeyInfo)."""
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(self._key.public_bytes(serialization.Encoding.DER, public)).hexdigest()[:16]

    def fits(self, signature: bytes, data: bytes) -> bool:
        """Tell whether `signature` is of this key and of `data`."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """The half of a key that signs. Neither its errors nor its repr show it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def new(cls) -> Self:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a PEM file (PKCS#8). Raises BundleError for whatever is no private key of Ed25519, or is locked."""
        body = _read(path)
        if b"PUBLIC KEY" in body:
            raise BundleError(f"{path} holds a public key: signing needs the private one that belongs to it")
        if b"ENCRYPTED" in body:
            raise BundleError(f"{path} is locked with a passphrase: unlock it with openssl pkey -in {path} -out …")
        key: object = None
        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key = serialization.load_pem_private_key(body, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise BundleError(f"{path} holds no private key of Ed25519 in PEM, as entrepot key new writes it")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write a PEM file that none but its owner reads. Raises BundleError where there is one, or it cannot be."""
        private = serialization.PrivateFormat.PKCS8
        body = self._key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())
        _write(path, body, 0o600)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature of `data`."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id})"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that is trusted to bring the repositories of its scope; `name` is what people call it."""

    name: str
    key: PublicKey
    scope: Scope


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is held of a bundle. key: the name of the trusted key that signed it; id: that of the key, trusted or not.

    scope: the repositories that it may bring; note: what the person should know, in a sentence.
    """

    key: str | None
    id: str | None
    scope: Scope
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys that are trusted; of two with one id the first counts. required: nothing else is taken."""

    keys: Sequence[TrustedKey]
    required: bool

    def judge(self, sealed: Sealed, signature: bytes | None) -> Verdict:
        """Return what is held of a plan with this signature (the body of plan.sig; None: it has none).

        Raises Untrusted: it is altered, or what is required is missing; the message says what to do.
        """
        if signature is None:
            if self.required:
                raise Untrusted(
                    f"the bundle is not signed, and a signature is required here ({self._trusted}): ask for one that"
                    " was exported with --sign, or set bundles.require_signature = false"
                )
            return Verdict(None, None, _EVERYTHING, "the bundle is not signed: nothing tells who made it")
        read = _read_signature(signature)
        trusted = next((one for one in self.keys if one.key.id == read.key), None)
        if trusted is not None:
            if not trusted.key.fits(base64.b64decode(read.signature), CONTEXT + sealed.body):
                raise Untrusted(
                    f"the bundle was altered: its signature is of the key {trusted.name} ({read.key}), and its plan is"
                    " not what was signed; do not use it, and ask whoever signed it for another copy"
                )
            return Verdict(trusted.name, read.key, trusted.scope)
        if self.required:
            raise Untrusted(
                f"the bundle is signed by the key {read.key}, which is not trusted here ({self._trusted}): if you"
                " trust who made it, give that public key with --verify-key or as a [[trusted_key]]"
            )
        note = f"the bundle is signed by the key {read.key}, which is not known here: the signature was not checked"
        return Verdict(None, read.key, _EVERYTHING, note)

    @property
    def _trusted(self) -> str:
        named = ", ".join(f"{one.name} {one.key.id}" for one in self.keys)
        return f"trusted: {named}" if named else "no key is trusted"


def sign(sealed: Sealed, key: PrivateKey) -> bytes:
    """Return the body of plan.sig for a plan; it has always `SIGNATURE_SIZE` bytes."""
    return _body(key.public.id, key.sign(CONTEXT + sealed.body))


def _body(key: str, signature: bytes) -> bytes:
    return msgspec.json.encode(_Signature(FORMAT, key, base64.b64encode(signature).decode()))


SIGNATURE_SIZE = len(_body("0" * 16, bytes(64)))


def _read_signature(body: bytes) -> _Signature:
    """Read a plan.sig, which may be written in one way only, so that no byte of it may change unseen."""
    try:
        read = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Untrusted(f"the bundle's signature cannot be read, it was altered: {error}; copy it again") from None
    if read.format != FORMAT:
        raise Untrusted(f"the signature is of the format {read.format[:80]!r}; this version of entrepot reads {FORMAT}")
    if body != _body(read.key, base64.b64decode(read.signature)):
        raise Untrusted("the bundle's signature is not written as it must be, it was altered; copy it again")
    return read


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            body = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise BundleError(f"the key {path} cannot be read: {error.strerror}") from None
    if len(body) > MAX_KEY_FILE:
        raise BundleError(f"{path} is no key: it has more than {MAX_KEY_FILE} bytes")
    return body


def _write(path: Path, body: bytes, mode: int) -> None:
    """Write a file that was not there, whole or not at all, with its mode from the first byte on."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(file, "wb") as writer:
                writer.write(body)
                writer.flush()
                os.fsync(file)
            _rename_new(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise BundleError(f"{path} is there already, and no key is overwritten: choose another name") from None
    except OSError as error:
        raise BundleError(f"the key {path} cannot be written: {error.strerror}") from None


def _rename_new(partial: Path, path: Path) -> None:
    """Give a file its name, which must be free. Raises FileExistsError, OSError."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT has no hard links.
        if path.exists():
            raise FileExistsError from None
        partial.rename(path)
