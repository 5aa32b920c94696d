"""What core code tells about itself: frozen events, given to whoever was wired in. No prometheus here.

Objects that have something to tell take an `Emit`. Seconds are floats, sizes bytes. No event carries
a credential, a query string, or an address beyond the client's own in `RequestFinished`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from metrics.regional_events import (
    ImageFailed as ImageFailed,
    ImageSynced as ImageSynced,
    PeerFailed as PeerFailed,
    PeerPolled as PeerPolled,
    PeerReconciled as PeerReconciled,
    PeerStanding as PeerStanding,
    PeerTransferred as PeerTransferred,
    RegionAnswered as RegionAnswered,
)


class RequestFinished(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="finished"):
    """One answered client request.

    kind: ping | manifest | blob | tags | referrers | catalog | other.
    outcome: hit | joined | miss | neighbour | bucket | stale | relayed | redirected (to the bucket) | error | none
    (nothing was looked up).
    reference: as it was asked for; digest: of the content that it stands for, empty where that was not found out.
    started: by `time.monotonic`, which all processes of a machine share.
    upstream_wait: for how much of `first_byte` a source was waited for. agent: the client's User-Agent, as it came.
    alike: the same of events that differ in who asked and in numbers alone, 0 where nobody knows: it spares comparing.
    """

    kind: str
    method: str
    status: int
    outcome: str
    upstream: str
    repository: str
    reference: str
    sent: int
    first_byte: float
    duration: float
    client: str
    request_id: str
    digest: str = ""
    agent: str = ""
    started: float = 0.0
    upstream_wait: float = 0.0
    alike: int = 0


class BlobStarted(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="started"):
    """A client asks for a blob, or a part of one; `RequestFinished` of the same request_id follows. Fields as there."""

    client: str
    request_id: str
    upstream: str
    repository: str
    digest: str
    agent: str
    started: float


@dataclass(frozen=True, slots=True)
class PullEnded:
    """A client has pulled an image.

    outcome: hit | joined | miss | near | unchanged | broken. sent: bytes. layers: of the image, as far as they are
    known; had: those of them that the client did not ask for.
    """

    upstream: str
    outcome: str
    seconds: float
    sent: int
    layers: int
    had: int
    layer_bytes: int
    had_bytes: int


@dataclass(frozen=True, slots=True)
class StaleServed:
    """A client was given what an upstream confirmed `age` seconds ago, as it could not be asked again."""

    age: float


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to an upstream host.

    kind: manifest | blob | token | ping | tags | referrers.
    status: the number, or timeout | network, as text. seconds: until the headers of the answer.
    """

    upstream: str
    kind: str
    method: str
    status: str
    seconds: float


@dataclass(frozen=True, slots=True)
class UpstreamRetry:
    """A request is asked again. reason: a status, timeout, network or another word of a small fixed set."""

    upstream: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpstreamQuota:
    """What `ratelimit-limit` and `ratelimit-remaining` said (P35); window in seconds."""

    upstream: str
    limit: int
    remaining: int
    window: int


@dataclass(frozen=True, slots=True)
class UpstreamHealth:
    """How an upstream host stands, told when it has changed: it fails, it refuses our credential."""

    upstream: str
    failing: bool
    credential_refused: bool


@dataclass(frozen=True, slots=True)
class NeighbourRequest:
    """One request to another node of the fleet.

    kind: blob | manifest | tag | ping | sync | other. outcome: ok | missing | refused | failed (no answer of a node of
    this fleet) | abandoned. seconds: until the headers of the answer.
    """

    kind: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class NeighbourAnswered:
    """One request of another node that was answered. kind: as of NeighbourRequest. sent: bytes of the body."""

    kind: str
    status: int
    sent: int


@dataclass(frozen=True, slots=True)
class FillStarted:
    """A download into the store began. Exactly one FillFinished follows, whatever happens.

    recovered: bytes of an earlier attempt that were found good on disk.
    """

    upstream: str
    recovered: int


@dataclass(frozen=True, slots=True)
class FillJoined:
    """A request found the download it needs already running."""

    upstream: str


@dataclass(frozen=True, slots=True)
class FillResumed:
    """A fill went on after a break, from the same or another source, or after a restart."""

    upstream: str
    source: str


@dataclass(frozen=True, slots=True)
class FillFinished:
    """outcome: committed | corrupt | failed | abandoned.

    reason: why it was not committed: timeout | network | status | denied | missing | short | corrupt | store |
    abandoned | other.
    received: bytes that came from sources in this attempt, recovered ones not counted; from_near: those of them that
    came from other nodes of the fleet (neighbour), its bucket (bucket) and other regions (region).
    """

    upstream: str
    outcome: str
    received: int
    seconds: float
    from_near: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class VerificationFailed:
    """Bytes that do not match their digest. `source` is empty where nobody can be blamed."""

    upstream: str
    source: str
    digest: str


@dataclass(frozen=True, slots=True)
class TagRevalidated:
    """outcome: unchanged | moved | new | held (by its cooldown) | gone | failed."""

    upstream: str
    outcome: str


@dataclass(frozen=True, slots=True)
class WarmFinished:
    """A run of a `[[warm]]` section ended. number: from 1. outcome: done | partial | failed. ended: unix time."""

    number: int
    outcome: str
    ended: float


@dataclass(frozen=True, slots=True)
class ClosureEvicted:
    """An image, or what was left of one, gave its room back. reason: quota | orphan | gc | rm."""

    reason: str
    blobs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SpaceMeasured:
    """Bytes: what may be stored (`high`), what a sweep goes down to, what is stored and reserved; of the volume what is
    free, and all.
    """

    high: int
    low: int
    used: int
    free: int
    size: int


@dataclass(frozen=True, slots=True)
class BucketRequest:
    """One question to the bucket that nodes share.

    operation: head | get | put | delete | list | probe. outcome: ok | missing | timeout | network | denied | error |
    aborted | cancelled. seconds: until its answer, of a put until it was done.
    """

    operation: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class BucketTransferred:
    """Bytes went into the bucket (up) or came from it (down)."""

    direction: str
    bytes: int


@dataclass(frozen=True, slots=True)
class BucketHealth:
    """Whether the bucket is asked, told when that has changed. reason: why it is not."""

    failing: bool
    reason: str


@dataclass(frozen=True, slots=True)
class UploadsQueued:
    """How many blobs the bucket is still to be given, and for how many seconds the oldest has waited."""

    waiting: int
    oldest: float


@dataclass(frozen=True, slots=True)
class BucketCollected:
    """A collection of garbage in the bucket ended. outcome: done | failed.

    deleted: objects that went, `bytes` their size. unknown: objects that no catalog record speaks of; they stay.
    """

    outcome: str
    deleted: int
    bytes: int
    unknown: int


@dataclass(frozen=True, slots=True)
class RedisHealth:
    """Whether the Redis that nodes share is used, told when that has changed."""

    up: bool


@dataclass(frozen=True, slots=True)
class RedisCall:
    """One call to Redis. script: its name, of a small fixed set. outcome: ok | down | timeout."""

    script: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RedisRefused:
    """A call that was not made, as Redis is down, or too many wait already."""

    script: str


@dataclass(frozen=True, slots=True)
class RecordsMerged:
    """A page of another node's records was merged: how many changed something here, how many its clock forbade."""

    tags: int
    memberships: int
    pins: int
    refused: int


@dataclass(frozen=True, slots=True)
class FeedFailed:
    """Another node's records could not be taken over.

    reason: unreachable | unreadable | same-catalog | store | other.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class FeedStanding:
    """Of how many nodes records are taken over, and of how many of them all are here."""

    nodes: int
    current: int


Event = (
    BucketCollected
    | BucketHealth
    | BucketRequest
    | BucketTransferred
    | UploadsQueued
    | BlobStarted
    | RequestFinished
    | PullEnded
    | StaleServed
    | UpstreamRequest
    | UpstreamRetry
    | UpstreamQuota
    | UpstreamHealth
    | NeighbourRequest
    | NeighbourAnswered
    | FillStarted
    | FillJoined
    | FillResumed
    | FillFinished
    | VerificationFailed
    | TagRevalidated
    | ClosureEvicted
    | SpaceMeasured
    | WarmFinished
    | RedisHealth
    | RedisCall
    | RedisRefused
    | RecordsMerged
    | FeedFailed
    | FeedStanding
    | PeerStanding
    | PeerFailed
    | PeerPolled
    | PeerReconciled
    | PeerTransferred
    | ImageSynced
    | ImageFailed
    | RegionAnswered
)
Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An Emit for those who listen to nothing."""
