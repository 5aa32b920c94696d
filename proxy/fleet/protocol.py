"""What nodes of a fleet say to one another over HTTP: its version, headers, paths, and who is a neighbour. Pure.

How requests and answers are signed is in `signing`; who asks is in `neighbours` and `neighbour`, who answers is
`proxy.fleet_endpoint`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

import msgspec

from proxy.cache.near import TagSaid
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, Transient
from proxy.oci.names import Repository, Tag

PROTOCOL = 1
REQUEST_HEADER = "Entrepot-Fleet"
ANSWER_HEADER = "Entrepot-Fleet-Answer"
SAYS_HEADER = "Entrepot-Says"

PING = "/fleet/v1/ping"
BLOBS = "/fleet/v1/blobs/"
MANIFESTS = "/fleet/v1/manifests/"
TAGS = "/fleet/v1/tags/"
SYNC = "/sync/v1/"

_KINDS = ((BLOBS, "blob"), (MANIFESTS, "manifest"), (TAGS, "tag"), (SYNC, "sync"), (PING, "ping"))
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,251}[a-z0-9_])?")
_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")  # what resolvers read as an IPv4 address in disguise
_NETWORK_BITS = {4: 16, 6: 48}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class OtherProtocol(Transient):
    """Two nodes speak different versions of this protocol."""

    status = 505


class Says(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer tells besides its body, signed. `size`: of the whole blob or manifest in bytes, where known.

    proven: the repository that was asked for is known to contain it. public: it was once fetched anonymously.
    servable: of a manifest, its blobs are there too. type: a manifest's media type.
    """

    proven: bool = False
    public: bool = False
    servable: bool = False
    size: int | None = None
    type: str = ""

    def encode(self) -> str:
        """Return the value of the header."""
        return json.dumps(msgspec.to_builtins(self), separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read the value of the header. Raises BadContent."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise BadContent(f"a node's {SAYS_HEADER} is unreadable: {error}") from None


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Where the nodes of a fleet may be. Host names are judged by name, addresses by network."""

    _networks: tuple[Network, ...]
    _names: tuple[re.Pattern[str], ...]

    @classmethod
    def parse(cls, patterns: Sequence[str], own_url: str) -> Self:
        """Read networks and globs of host names, whose `*` stands for characters within one label.

        Without any, those who live as `own_url` does: the same /16 or /48, or the same domain. Raises ValueError.
        """
        networks: list[Network] = []
        names: list[re.Pattern[str]] = []
        for pattern in patterns or (_surroundings(own_url),):
            try:
                networks.append(ipaddress.ip_network(pattern))
            except ValueError:
                labels = (re.escape(part).replace(r"\*", "[^.]*") for part in pattern.lower().split("."))
                names.append(re.compile(r"\.".join(labels)))
        return cls(tuple(networks), tuple(names))

    def admits(self, url: str) -> bool:
        """Tell whether a node may be at `url`: nothing else may ever be connected to."""
        try:
            host = _host(url)
        except ValueError:
            return False
        address = _address(host)
        if address is None:
            return any(name.fullmatch(host) for name in self._names)
        return any(address in network for network in self._networks)


def origin(url: str) -> str:
    """Return the one way to write a node's URL, scheme, host and port. Raises ValueError where it is no such URL."""
    parts = urlsplit(url)
    host = _host(url)
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def node_name(url: str) -> str:
    """Return host and port of a node, for logs and blame. Raises ValueError."""
    return origin(url).partition("://")[2]


def blob_target(repository: Repository, digest: Digest, *, held: bool) -> str:
    """Return path and query of a blob; `held`: only where it is stored."""
    return f"{BLOBS}{digest}?{_query(repository, held=held)}"


def manifest_target(repository: Repository, digest: Digest, *, held: bool) -> str:
    """Return path and query of a manifest; `held`: only where it is stored."""
    return f"{MANIFESTS}{digest}?{_query(repository, held=held)}"


def tag_target(repository: Repository, tag: Tag) -> str:
    """Return path and query of a tag."""
    return f"{TAGS}{tag}?{_query(repository, held=False)}"


def kind_of(target: str) -> str:
    """Return what is asked for, for metrics: ping | blob | manifest | tag | sync | other."""
    return next((kind for start, kind in _KINDS if target.startswith(start)), "other")


class _Found(msgspec.Struct, frozen=True):
    type: str
    digest: str
    size: int


class _TagBody(msgspec.Struct, frozen=True):
    found: _Found | None
    message: str
    age: float


def encode_tag(said: TagSaid) -> bytes:
    """Return what a node was told about a tag, as JSON."""
    one = said.found
    found = None if one is None else _Found(one.media_type, str(one.digest), one.size)
    return msgspec.json.encode(_TagBody(found, said.message, said.age))


def decode_tag(body: bytes) -> TagSaid:
    """Read what a node was told about a tag. Raises BadContent, DigestInvalid."""
    try:
        said = msgspec.json.decode(body, type=_TagBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadContent(f"what a node says of a tag is unreadable: {error}") from None
    one = said.found
    found = None if one is None else Descriptor(one.type, Digest.parse(one.digest), one.size)
    return TagSaid(found, said.message, max(0.0, said.age))


def _query(repository: Repository, *, held: bool) -> str:
    return f"repository={quote(str(repository), safe='/')}{'&held=1' if held else ''}"


def _host(url: str) -> str:
    """Return the host in `url`, in lower case. Raises ValueError where there is more than scheme, host and port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or parts.port == 0:
        raise ValueError(f"{url!r} is no node's URL: write http://host:port or https://host:port")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no node's URL: it has more than a scheme, a host and a port")
    if _address(host) is None and (_NUMBER.fullmatch(host) or not _NAME.fullmatch(host)):
        raise ValueError(f"{url!r} is no node's URL: {host!r} is neither a host name nor an address")
    return host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _surroundings(own_url: str) -> str:
    host = _host(own_url)
    address = _address(host)
    if address is None:
        _, dot, parent = host.partition(".")
        return f"*{dot}{parent}"
    if address.is_loopback:
        return "127.0.0.0/8" if address.version == 4 else "::1/128"
    return str(ipaddress.ip_network((address, _NETWORK_BITS[address.version]), strict=False))
