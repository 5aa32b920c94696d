"""What the sync with other regions says of itself: plain values for commands, status and metrics. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

State = Literal["stopped", "starting", "fetching", "current", "held", "failing"]
Action = Literal["fetch", "tag", "remove", "refuse", "wait"]


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one peer stands.

    state: `stopped` where no process syncs. held: why nothing is fetched now (paused, outside its window).
    seconds_behind: for how long something of the peer has not been here, 0 when all is; images_behind: images and
    tags, each by itself, that are to come; bytes_behind: what of them is known to be missing; removals: those that
    wait. refused_clock: records whose version is ahead of this clock. failures: of images, since the start, as all
    that follows: rounds: questions of comparisons; sync_bytes: what records cost on the wire; fetched_bytes: what
    content came.
    """

    name: str
    url: str
    state: State
    error: str | None = None
    held: str | None = None
    seconds_behind: float = 0.0
    images_behind: int = 0
    bytes_behind: int = 0
    removals: int = 0
    removals_refused: str | None = None
    refused_clock: int = 0
    failures: int = 0
    records: int = 0
    rounds: int = 0
    sync_bytes: int = 0
    fetched_bytes: int = 0
    rate: float = 0.0


class PlannedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan. reference: UPSTREAM/path:tag or @digest. size: bytes to fetch, None while unknown."""

    peer: str
    action: Action
    reference: str
    digest: str | None = None
    size: int | None = None
    reason: str = ""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pass is; total_bytes grows as manifests are read."""

    images: int
    total_images: int
    bytes: int
    total_bytes: int
    rate: float
    seconds_left: float | None


class PassReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass did. failed: reference and reason. refused: removals that are more than may be."""

    images: int = 0
    bytes: int = 0
    tags: int = 0
    removed: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    refused: tuple[str, ...] = ()
    unreachable: tuple[tuple[str, str], ...] = ()
    held: tuple[tuple[str, str], ...] = ()


class ConflictReport(msgspec.Struct, frozen=True, kw_only=True):
    """Two records of a tag that did not know of each other; the loser's image is kept under its digest."""

    reference: str
    winner: str
    winner_region: str
    loser: str
    loser_region: str
    found_at: float


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """How this region compares with a peer. missing: chosen images that are not here whole; differing: records."""

    peer: str
    records: int
    differing: int
    missing: tuple[str, ...] = ()
    error: str | None = None


Told = Callable[[Progress], Awaitable[None]]
