"""What is told of other regions: one frozen struct an event. They are given on by `events`, which all import."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerStanding:
    """How far this region is behind another: for how many seconds, by how many images and bytes that are known of.

    removals: images and tags that were removed there, and wait to be here.
    """

    peer: str
    seconds: float
    images: int
    bytes: int
    removals: int


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """Another region could not be asked for records.

    reason: unreachable | refused (token, certificate, grant) | unreadable | same-catalog | store | other.
    """

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerPolled:
    """Another region's records were read once. bytes: of the body of its answer; records: how many were in it."""

    peer: str
    bytes: int
    records: int


@dataclass(frozen=True, slots=True)
class PeerReconciled:
    """What is known of another region was compared with what it says. rounds: questions; bytes: of their bodies."""

    peer: str
    rounds: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PeerTransferred:
    """Bytes of content came from another region."""

    peer: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ImageSynced:
    """An image of another region is here whole. bytes: what it is made of; seconds: from its start to its tags."""

    peer: str
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """An image of another region could not be had now; it is tried again.

    reason: missing | corrupt | unreachable | refused | store | other.
    """

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class RegionAnswered:
    """A question of another region was answered.

    kind: ping | changes | ranges | tag | manifest | blob | other. bytes: of the answer's body.
    """

    kind: str
    status: int
    bytes: int
