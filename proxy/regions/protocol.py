"""What regions say to one another over HTTP: paths, `Via`, what an answer tells besides its body. Pure.

Content is asked for at the ordinary URLs of the Distribution API, always by digest and with the upstream's name in
front. Who asks is `peer`, who answers is `proxy.region_endpoint`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, quote

import msgspec

from proxy.cache.near import TagAtHome
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, NameInvalid, NotServed
from proxy.oci.names import Repository, Tag, parse_path
from proxy.store.exchanged import TagChange
from proxy.store.tagstate import describes, state_of

PING = "/v2/"
TAG = "/sync/v1/tag"
SYNC = "/sync/"
HELD_ONLY = "only-if-cached"
CHALLENGE = 'Bearer realm="entrepot"'
JSON = "application/json"
MSGPACK = "application/msgpack"

_VIA = re.compile(
    r"(?:^|,)\s*(?:[A-Za-z]+/)?[0-9.]+[ \t]+([a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?)[ \t]+\(entrepot\)\s*(?=,|$)"
)
_CONTENT = re.compile(r"/v2/([a-z0-9._-]{1,255})/([^?#%]{1,255})/(blobs|manifests)/([A-Za-z0-9:]{1,160})")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Content that a region asks for."""

    kind: Literal["blob", "manifest"]
    repository: Repository
    digest: Digest


class _TagBody(msgspec.Struct, frozen=True):
    record: TagChange
    age: float
    region: str


def via(region: str) -> str:
    """Return the header of a request of `region` (RFC 9110 §7.6.3)."""
    return f"1.1 {region} (entrepot)"


def regions_of(headers: Iterable[str]) -> tuple[str, ...]:
    """Return the regions that `Via` headers name; the proxies of others in between do not count."""
    return tuple(name for header in headers for name in _VIA.findall(header))


def content_target(wanted: Wanted) -> str:
    """Return the path of a blob or manifest."""
    return f"/v2/{wanted.repository}/{wanted.kind}s/{wanted.digest}"


def tag_target(repository: Repository, tag: Tag, max_age: float = math.inf) -> str:
    """Return path and query of what a tag is at its home, which heard it at most `max_age` seconds ago."""
    age = "" if max_age == math.inf else f"&max_age={int(max_age)}"
    return f"{TAG}?repository={quote(str(repository), safe='/')}&name={tag}{age}"


def parse_content(path: str) -> Wanted:
    """Read the path of a blob or manifest. Raises NotServed for any other path, NameInvalid, DigestInvalid."""
    match = _CONTENT.fullmatch(path.replace("%3A", ":").replace("%3a", ":"))
    if match is None:
        raise NotServed("regions ask one another for /v2/<upstream>/<path>/{blobs,manifests}/<digest>, and the records")
    upstream, name, kind, digest = match.groups()
    repository = parse_path(upstream, name)
    return Wanted("blob" if kind == "blobs" else "manifest", repository, Digest.parse(digest))


def parse_tag(query: str) -> tuple[Repository, Tag, float]:
    """Read the query of a question about a tag: which one, and `max_age`. Raises NameInvalid, TagInvalid."""
    fields = parse_qs(query)
    upstream, slash, path = fields.get("repository", [""])[0].partition("/")
    if not upstream or not slash:
        raise NameInvalid("write repository=UPSTREAM/PATH&name=TAG: which tag is meant?")
    seconds = fields.get("max_age", [""])[0]
    max_age = float(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else math.inf
    return parse_path(upstream, path), Tag.parse(fields.get("name", [""])[0]), max_age


def encode_tag(said: TagAtHome, media_type: str) -> bytes:
    """Return what a tag is at its home, as MessagePack or JSON."""
    body = _TagBody(said.record, said.age, said.region)
    encode = msgspec.json.encode if media_type == JSON else msgspec.msgpack.encode
    return encode(body, enc_hook=str)  # tags and digests are strings of their own types


def decode_tag(body: bytes) -> TagAtHome:
    """Read it as MessagePack. Raises BadContent."""
    try:
        said = msgspec.msgpack.decode(body, type=_TagBody)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadContent(f"what a region says of a tag is unreadable: {error}") from None
    if not describes(state_of(said.record)):
        raise BadContent("what a region says of a tag is unreadable: it says neither type nor size of what that is")
    return TagAtHome(said.record, max(0.0, said.age), said.region)


def kind_of(target: str) -> str:
    """Return what is asked for, for metrics: ping | blob | manifest | tag | changes | ranges | other."""
    path = target.partition("?")[0]
    if path == PING:
        return "ping"
    if path.startswith("/sync/v1/"):
        name = path.rpartition("/")[2]
        return name if name in ("tag", "changes", "ranges") else "other"
    start = path.rpartition("/")[0]
    return "blob" if start.endswith("/blobs") else "manifest" if start.endswith("/manifests") else "other"
