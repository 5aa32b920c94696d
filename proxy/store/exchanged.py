"""The records that catalogs exchange, and which of two prevails. Plain values and pure decisions, no I/O.

What a repository says is exchanged: its tags, what it is proven to contain, its pins, and the tombstones of these
three. Bytes, manifests and what is present stay each catalog's own: they are fetched when they are asked for.

Every record carries a version, a hybrid logical clock. Of two memberships or pins of one key the greater prevails, in
one total order: by version, then the addition. So merging is commutative, associative and idempotent, draws no version,
and catalogs that have seen the same records in whatever order are alike.

Of two records that call a tag the same digest the lower version counts: who saw it late must not beat what replaced it
meanwhile. A tag that kept its present record alone could not do so: X of 1, Y of 2 and X of 3 would end as X or as Y by
the order in which they met. So a record also tells what else the tag was said to be (`others`), the versions are
compared digest by digest, and the three end as Y wherever they meet (`tagstate`).

The proof of a membership, and when it was proven or pinned, are evidence of whoever noted it first, and not compared.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from proxy.store.records import Proof

AHEAD_SECONDS = 300.0
"""A version further ahead of our clock than this is refused: it would hide every later change until then."""

_CLOCK_SHIFT = 16
_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
_Time = Annotated[float, msgspec.Meta(ge=0)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
_Root = Annotated[str, msgspec.Meta(pattern=r"\A(|sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
_Tag = Annotated[str, msgspec.Meta(pattern=r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")]
_Reference = Annotated[
    str, msgspec.Meta(pattern=r"\A([a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}|sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")
]
_Text = Annotated[str, msgspec.Meta(max_length=255)]


class Past(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a tag also was said to be: another digest than it is now (None: removed). As in TagChange."""

    digest: _Digest | None
    generation: _Number
    version: _Number
    base: _Number
    origin: _Text
    media_type: _Text | None
    size: _Number | None
    observed_at: _Time


class TagChange(msgspec.Struct, frozen=True, array_like=True, tag="t", gc=False):
    """A tag; `digest` None is a tombstone. `at`: the number of its repository in the page. As `TagRecord`.

    generation: how often its digest came back after another had replaced it. base: the version of what its author saw
    replaced, 0 for nothing. others: what it was said to be besides, the newest first, no digest twice.
    """

    seq: _Number
    at: _Number
    name: _Tag
    version: _Number
    digest: _Digest | None
    media_type: _Text | None
    size: _Number | None
    origin: _Text
    observed_at: _Time
    checked_at: _Time
    generation: _Number = 0
    base: _Number = 0
    others: Annotated[tuple[Past, ...], msgspec.Meta(max_length=16)] = ()


class MembershipChange(msgspec.Struct, frozen=True, array_like=True, tag="m", gc=False):
    """A repository contains a digest, or, `removed`, nobody may conclude so from what was proven before.

    root: regions compare it, as it is a manifest that nothing named when it was proven (""), or that refers to this
    subject. None: they do not; of two records of one key the greater root counts, whatever their versions.
    """

    seq: _Number
    at: _Number
    digest: _Digest
    version: _Number
    removed: bool
    proof: Proof
    proved_at: _Time
    root: _Root | None = None

    @property
    def rank(self) -> tuple[int, bool]:
        return self.version, not self.removed


class PinChange(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """A tag or digest is kept from eviction or, `removed`, is not any more."""

    seq: _Number
    at: _Number
    reference: _Reference
    version: _Number
    removed: bool
    created: _Time

    @property
    def rank(self) -> tuple[int, bool]:
        return self.version, not self.removed


Change = TagChange | MembershipChange | PinChange


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Up to `seq` everything of the catalog `epoch`, which is that of `node`, was taken over."""

    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    node: _Text
    seq: _Number


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Changes of the catalog `epoch` in the order of their `seq`; `next` is where to go on, `head` the last seq.

    `more`: there are further ones now. `restart`: the position that was asked for is none of this catalog; begin at 0,
    or where this epoch is known to have been read. cursors: of the other catalogs that this one has read, where asked
    for: whoever has all of this one (no `more`) has all of them up to there. copy: the records are none
    of the feed but of a copy in the order of keys, which goes on there, or, empty, is whole (see `copying`).
    """

    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    head: _Number
    next: _Number
    more: bool = False
    restart: bool = False
    repositories: list[tuple[_Text, _Text]] = []
    records: list[Change] = []
    cursors: list[Cursor] = []
    copy: Annotated[str, msgspec.Meta(max_length=300)] | None = None


def is_ahead(version: int, now: float) -> bool:
    """Tell whether a version cannot be true, unless one of two clocks is wrong."""
    return (version >> _CLOCK_SHIFT) > (now + AHEAD_SECONDS) * 1000
