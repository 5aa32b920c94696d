"""What nodes say to one another about their catalogs, on the wire: one question, one page. Pure.

`GET /sync/v1/changes?since=<epoch>:<seq>&wait=<seconds>` is answered with a `Page` as MessagePack (JSON where that is
accepted alone), the version of the protocol beside it. `since` of another epoch, or beyond the head, is answered with
`restart`. `cursors=1` asks how far others have been read. `copy=<place>` asks for what there is, in the order of keys,
from that place on, and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qs, quote

import msgspec

from proxy.oci.errors import BadContent, RegistryError
from proxy.oci.names import Repository, parse_path
from proxy.store.copying import BEGIN, split
from proxy.store.exchanged import Page, TagChange
from proxy.store.tagstate import describes, state_of
from sync.packing import UNREADABLE

PROTOCOL = 2
CHANGES = "/sync/v1/changes"
MSGPACK = "application/msgpack"
JSON = "application/json"
MOST_RECORDS = 1000
MOST_COPIED = 4000
MOST_WAIT = 30.0


class _Answer(msgspec.Struct, frozen=True):
    protocol: int
    page: Page


class _Version(msgspec.Struct, frozen=True):
    protocol: int


_ENCODERS: dict[str, msgspec.msgpack.Encoder | msgspec.json.Encoder] = {
    MSGPACK: msgspec.msgpack.Encoder(),
    JSON: msgspec.json.Encoder(),
}
_DECODER = msgspec.msgpack.Decoder(_Answer)
_VERSION = msgspec.msgpack.Decoder(_Version)


@dataclass(frozen=True, slots=True)
class Question:
    """What changed in the catalog `epoch` after `seq`? Waits up to `wait` seconds for something to tell.

    copy: what is there after this place, rather; `seq` is the head that the first page of the copy told.
    """

    epoch: str = ""
    seq: int = 0
    wait: float = 0.0
    cursors: bool = False
    copy: str | None = None

    def after(self, page: Page) -> Self:
        """Return what to ask next, once `page` has answered this. What was never read is copied first."""
        if page.restart:
            return replace(self, epoch=page.epoch, seq=page.next, copy=None if page.next else BEGIN)
        if self.copy is None:
            return replace(self, seq=page.next)
        return replace(self, seq=self.seq or page.head, copy=page.copy or None)

    @property
    def target(self) -> str:
        """Path and query."""
        more = "&cursors=1" if self.cursors else ""
        more += f"&copy={quote(self.copy, safe=':')}" if self.copy is not None else ""
        return f"{CHANGES}?since={quote(self.epoch)}:{self.seq}&wait={self.wait:g}{more}"

    @classmethod
    def parse(cls, query: str) -> Self:
        """Read a query. A longer wait than MOST_WAIT is cut to it. Raises ValueError."""
        asked = parse_qs(query, max_num_fields=8)
        epoch, _, seq = asked.get("since", [":0"])[0].rpartition(":")
        position, wait = int(seq), float(asked.get("wait", ["0"])[0])
        place = asked.get("copy", [None])[0]
        if not 0 <= position < 1 << 62 or not 0 <= wait < float("inf"):
            raise ValueError("since and wait may not be negative")
        if place is not None:
            split(place)
        return cls(epoch, position, min(wait, MOST_WAIT), asked.get("cursors", ["0"])[0] == "1", place)


def encode(page: Page, media_type: str = MSGPACK) -> bytes:
    """Return the body of an answer."""
    return _ENCODERS[media_type].encode(_Answer(PROTOCOL, page))


def decode(body: bytes) -> tuple[Page, list[Repository]]:
    """Read and check the body of an answer; the page's repositories are given as such. Raises BadContent."""
    try:
        answer = _DECODER.decode(body)
        if answer.protocol == PROTOCOL:
            return answer.page, _checked(answer.page)
        spoken: int | None = answer.protocol
    except (*UNREADABLE, RegistryError) as error:
        spoken = _spoken(body)
        if spoken in (None, PROTOCOL):
            raise BadContent(f"a node's page of changes is unreadable: {error}") from None
    raise BadContent(
        f"a node speaks version {spoken} of the change feed, this one version {PROTOCOL}: "
        f"bring the older of the two up to date"
    )


def _spoken(body: bytes) -> int | None:
    try:
        return _VERSION.decode(body).protocol
    except UNREADABLE:
        return None


def _checked(page: Page) -> list[Repository]:
    repositories = [parse_path(upstream, path) for upstream, path in page.repositories]
    last, greatest = 0, page.next if page.copy is None else page.head
    for record in page.records:
        if record.at >= len(repositories) or record.seq > greatest or (record.seq <= last and page.copy is None):
            raise BadContent("its records are out of order, or of no repository")
        if isinstance(record, TagChange) and not describes(state_of(record)):
            raise BadContent("a tag says neither type nor size of what it is")
        last = record.seq
    return repositories
