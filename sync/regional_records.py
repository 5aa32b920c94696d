"""What regions say to one another about their catalogs, on the wire: two questions and their answers. Pure.

`GET /sync/v1/changes?since=<epoch>:<seq>[,<epoch>:<seq>]&scope=<glob>[,<glob>]&wait=<seconds>` asks for the roots that
changed. A region may have several nodes, each with a feed of its own: whichever answers takes the position of its own
epoch, or says `restart`. An answer without `more` says the fingerprint of all that was asked for, `restart` the
key of its hashes. `POST /sync/v1/ranges` compares by ranges of places. Answers are MessagePack (JSON where that is
accepted alone), the version of the protocol first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Self, TypeVar
from urllib.parse import parse_qs, quote

import msgspec

from proxy.oci.errors import BadContent, RegistryError
from proxy.oci.names import Repository, parse_path
from proxy.regions.scope import Scope
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.ranges import FANOUT, SPAN
from proxy.store.remote import RootChange
from proxy.store.tagstate import describes, state_of
from sync.packing import MARK_BYTES, PLACE_BYTES, SUM_BYTES, UNREADABLE

PROTOCOL = 1
CHANGES = "/sync/v1/changes"
RANGES = "/sync/v1/ranges"
MSGPACK = "application/msgpack"
JSON = "application/json"
MOST_WAIT = 30.0
MOST_EPOCHS = 16
MOST_RECORDS = 1000
MOST_PREFIXES = 256
MOST_INTERVALS = 256
MOST_SUMS = 4096
MOST_MARKS = 4096
"""So many marks may be told in one question, over all its intervals."""
MOST_GLOBS = 256
MOST_QUERY = 6000
MOST_BODY = 8 * 1024 * 1024
MESH_BYTES = 64

_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Word = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Place = Annotated[int, msgspec.Meta(ge=0)]
_Text = Annotated[str, msgspec.Meta(max_length=255)]
_Epoch = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Prefix = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{0,15}\Z")]
_Mesh = Annotated[bytes, msgspec.Meta(min_length=8, max_length=MESH_BYTES)]


class RootsTold(msgspec.Struct, frozen=True, omit_defaults=True, rename={"mesh_name": "key"}):
    """Changed roots of the catalog `epoch` of a region; positions as in `exchanged.Page`.

    mesh_name: a hash of the mesh key; mesh: that key, with `restart`. fingerprint: low, high,
    records of all that was asked for, at `head`; without `more`, and not while the key is being replaced.
    """

    protocol: int
    region: _Text
    epoch: _Epoch
    head: _Number
    next: _Number
    mesh_name: bytes
    more: bool = False
    restart: bool = False
    fingerprint: tuple[_Word, _Word, _Number] | None = None
    mesh: _Mesh | None = None
    repositories: list[tuple[_Text, _Text]] = []
    records: list[RootChange] = []


class RangesQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which sums have the ranges `levels` digits below each of `deeper`, and what differs in `compare`?

    compare: low and high place, and what the asker has there, as `pack_marks` writes it. scope: as `Scope.all_of`.
    """

    protocol: int
    scope: list[list[_Text]] = []
    levels: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    deeper: Annotated[list[_Prefix], msgspec.Meta(max_length=MOST_PREFIXES)] = []
    compare: Annotated[list[tuple[_Place, _Place, bytes]], msgspec.Meta(max_length=MOST_INTERVALS)] = []


class RangesTold(msgspec.Struct, frozen=True, omit_defaults=True, rename={"mesh_name": "key"}):
    """sums: as `pack_sums` writes them, for each of `deeper`. records: what differs in the first `done` intervals.

    upto: and in the next one, up to that place. gone: places that the asker has and this region has not.
    """

    protocol: int
    region: _Text
    epoch: _Epoch
    head: _Number
    mesh_name: bytes
    sums: list[bytes] = []
    done: _Number = 0
    upto: _Place | None = None
    gone: bytes = b""
    repositories: list[tuple[_Text, _Text]] = []
    records: list[RootChange] = []


class _Version(msgspec.Struct, frozen=True):
    protocol: int


_ENCODERS: dict[str, msgspec.msgpack.Encoder | msgspec.json.Encoder] = {
    MSGPACK: msgspec.msgpack.Encoder(),
    JSON: msgspec.json.Encoder(),
}
_TOLD = msgspec.msgpack.Decoder(RootsTold)
_RANGES_TOLD = msgspec.msgpack.Decoder(RangesTold)
_RANGES_ASKED = msgspec.msgpack.Decoder(RangesQuestion)
_VERSION = msgspec.msgpack.Decoder(_Version)

A = TypeVar("A", RootsTold, RangesTold)


@dataclass(frozen=True, slots=True)
class RootsQuestion:
    """Which roots have changed after `positions`, one per epoch? Waits up to `wait` seconds for something to tell."""

    positions: Mapping[str, int]
    scope: Scope
    wait: float = 0.0

    @property
    def target(self) -> str:
        """Path and query. Raises BadContent where the globs are more than a question can hold."""
        since = ",".join(f"{quote(epoch)}:{seq}" for epoch, seq in self.positions.items())
        scope = "".join(f"&scope={quote(','.join(globs), safe='/*,')}" for globs in spell_scope(self.scope))
        if len(scope) > MOST_QUERY:
            raise BadContent("the repositories to ask for are too many globs for a question: choose fewer, wider ones")
        return f"{CHANGES}?since={since}&wait={self.wait:g}{scope}"

    @classmethod
    def parse(cls, query: str) -> Self:
        """Read a query. A longer wait than MOST_WAIT is cut to it. Raises ValueError."""
        asked = parse_qs(query, max_num_fields=16)
        positions: dict[str, int] = {}
        for position in filter(None, ",".join(asked.get("since", [])).split(",")):
            epoch, _, seq = position.rpartition(":")
            positions[epoch] = int(seq)
        wait = float(asked.get("wait", ["0"])[0])
        if any(not 0 <= seq < 1 << 62 for seq in positions.values()) or not 0 <= wait < float("inf"):
            raise ValueError("since and wait may not be negative")
        if len(positions) > MOST_EPOCHS:
            raise ValueError(f"since names more than {MOST_EPOCHS} epochs")
        scope = read_scope([globs.split(",") for globs in asked.get("scope", [])])
        return cls(positions, scope, min(wait, MOST_WAIT))


def spell_scope(scope: Scope) -> list[list[str]]:
    """Return the globs of a scope; everything is none."""
    return [] if scope.everything else [[glob.text for glob in globs] for globs in scope.all_of]


def read_scope(globs: Sequence[Sequence[str]]) -> Scope:
    """Return the scope that the globs say; none are everything. Raises ValueError."""
    if sum(len(one) for one in globs) > MOST_GLOBS:
        raise ValueError(f"scope has more than {MOST_GLOBS} globs")
    return Scope(tuple(Scope.of(one).all_of[0] for one in globs) or Scope.of(["*"]).all_of)


def mesh_name(mesh: bytes) -> bytes:
    """Return what tells one mesh key from another, and says nothing of it."""
    return hashlib.blake2b(digest_size=8, key=mesh, person=b"mesh key").digest()


def encode(told: RootsTold | RangesTold | RangesQuestion, media_type: str = MSGPACK) -> bytes:
    """Return a body."""
    return _ENCODERS[media_type].encode(told)


def decode_roots(body: bytes, scope: Scope) -> tuple[RootsTold, list[Repository]]:
    """Read and check an answer to a RootsQuestion about `scope`. Raises BadContent."""
    told = _decode(_TOLD, body)
    repositories = _repositories(told.repositories, told.records, scope)
    seqs = [record.seq for record in told.records]
    if sorted(set(seqs)) != seqs or (seqs and seqs[-1] > told.next) or told.next > told.head:
        raise BadContent("a region's answer is unreadable: its records are out of order")
    if told.fingerprint is not None and told.more:
        raise BadContent("a region's answer is unreadable: it says a fingerprint before its end")
    return told, repositories


def decode_ranges(body: bytes, question: RangesQuestion, scope: Scope) -> tuple[RangesTold, list[Repository]]:
    """Read and check the answer to `question` about `scope`. Raises BadContent."""
    told = _decode(_RANGES_TOLD, body)
    repositories = _repositories(told.repositories, told.records, scope)
    size = SUM_BYTES * FANOUT**question.levels
    if len(told.sums) != len(question.deeper) or any(len(sums) != size for sums in told.sums):
        raise BadContent("a region's answer is unreadable: it has other sums than it was asked for")
    if told.done > len(question.compare) or len(told.gone) % PLACE_BYTES:
        raise BadContent("a region's answer is unreadable: it compares other ranges than it was asked for")
    if told.upto is not None:
        low, high, _ = question.compare[told.done] if told.done < len(question.compare) else (1, 0, b"")
        if not low <= told.upto <= high:
            raise BadContent("a region's answer is unreadable: it ends outside of what it was asked for")
    if question.compare and not told.done and told.upto is None:
        raise BadContent("a region's answer is unreadable: it compares nothing")
    return told, repositories


def decode_question(body: bytes) -> tuple[RangesQuestion, Scope]:
    """Read and check the body of a question about ranges. Raises ValueError."""
    try:
        question = _RANGES_ASKED.decode(body)
    except UNREADABLE as error:
        raise ValueError(str(error)) from None
    if question.protocol != PROTOCOL:
        raise ValueError(f"version {question.protocol} of the protocol, {PROTOCOL} is spoken here")
    prefixes = sorted(question.deeper)
    if any(after.startswith(before) for before, after in pairwise(prefixes)):
        raise ValueError("a range is asked for twice")
    if len(prefixes) * FANOUT**question.levels > MOST_SUMS:
        raise ValueError(f"more than {MOST_SUMS} sums")
    marks = 0
    for low, high, packed in question.compare:
        marks += len(packed) // MARK_BYTES
        if not low <= high < SPAN or len(packed) % MARK_BYTES:
            raise ValueError("an interval is none")
    if marks > MOST_MARKS:
        raise ValueError(f"more than {MOST_MARKS} marks")
    return question, read_scope(question.scope)


def _decode(decoder: msgspec.msgpack.Decoder[A], body: bytes) -> A:
    if len(body) > MOST_BODY:
        raise BadContent(f"a region's answer is longer than {MOST_BODY} bytes")
    try:
        told = decoder.decode(body)
        spoken: int | None = told.protocol
        problem = ""
    except UNREADABLE as error:
        spoken, problem = _spoken(body), str(error)
    if spoken not in (None, PROTOCOL):
        raise BadContent(
            f"a region speaks version {spoken} of the sync between regions, this one version {PROTOCOL}: bring the "
            "older of the two up to date"
        )
    if problem:
        raise BadContent(f"a region's answer is unreadable ({problem}): is its URL that of a mirror, and up to date?")
    return told


def _spoken(body: bytes) -> int | None:
    try:
        return _VERSION.decode(body).protocol
    except UNREADABLE:
        return None


def _repositories(names: Sequence[tuple[str, str]], records: Sequence[RootChange], scope: Scope) -> list[Repository]:
    try:
        repositories = [parse_path(upstream, path) for upstream, path in names]
    except RegistryError as error:
        raise BadContent(f"a region's answer is unreadable: {error}") from None
    for repository in repositories:
        if not scope.admits(repository):
            raise BadContent(
                f"a region tells of {repository}, which it was not asked for: it is to be brought up to date"
            )
    for record in records:
        if record.at >= len(repositories):
            raise BadContent("a region's answer is unreadable: a record is of no repository")
        if isinstance(record, MembershipChange) and record.root is None:
            raise BadContent("a region's answer is unreadable: it tells of a manifest that is no root")
        if isinstance(record, TagChange) and not describes(state_of(record)):
            raise BadContent("a region's answer is unreadable: a tag says neither type nor size of what it is")
    return repositories
