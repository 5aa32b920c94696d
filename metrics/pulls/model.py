"""What pulls are made from, and what is shown of them: plain structs. Seconds are floats, sizes bytes.

Nothing here that is shown holds a client's address: it serves to tell one pull from another and is then forgotten.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from metrics.events import BlobStarted, RequestFinished

Step = BlobStarted | RequestFinished
"""What a process that serves tells of a request that may belong to a pull: of a manifest, or of a blob."""

Role = Literal["config", "layer", "manifest"]
State = Literal["running", "done", "unchanged", "broken"]
"""unchanged: manifests were asked for, and the config at most: the client had all layers. broken: something failed, or
was left unread."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """What a manifest names, as far as a pull needs it. platform: os/architecture[/variant] of an index's child."""

    digest: str
    size: int
    role: Role
    platform: str = ""


class Bar(msgspec.Struct, frozen=True, gc=False):
    """One request of a pull, for a waterfall.

    role: what was asked for; "other" is a blob that no manifest of the pull names. start: seconds since the pull began.
    wait + upstream: until the first byte left, of which the source was waited for in `upstream`. transfer: from there
    to the last byte.
    """

    role: Literal["manifest", "config", "layer", "other"]
    reference: str
    digest: str
    size: int
    outcome: str
    status: int
    start: float
    wait: float
    upstream: float
    transfer: float
    sent: int


class PullSummary(msgspec.Struct, frozen=True, gc=False):
    """One pull in a list.

    image: the full reference that was asked for. agent: the client program, of a small fixed set, or "other".
    outcome: hit | joined | miss | near (from another node, the bucket or another region) | unchanged | broken; of a
    running pull what it is so far. started_at: unix time. seconds: to the end of its last request, or to now while one
    is under way.
    layers, had: how many the image has (0 while unknown), and how many of them the client did not ask for;
    layer_bytes, had_bytes: their sizes. sent: bytes to the client.
    """

    id: str
    image: str
    digest: str
    platform: str
    agent: str
    state: State
    outcome: str
    started_at: float
    seconds: float
    sent: int
    layers: int
    had: int
    layer_bytes: int
    had_bytes: int


class PullDetail(msgspec.Struct, frozen=True, gc=False):
    """One pull with each of its requests, by their start; `more` are those that were too many to keep."""

    pull: PullSummary
    bars: tuple[Bar, ...]
    more: int


class Quantiles(msgspec.Struct, frozen=True):
    """Seconds of the pulls that transferred something and ended within `window` seconds, of the latest 8192 where there
    were more; None where there were none."""

    window: float
    count: int
    p50: float | None
    p90: float | None
    p99: float | None


class RepositoryCount(msgspec.Struct, frozen=True):
    """A repository among those pulled most since the start: how often, and bytes sent. Counts may be too high where
    there were more repositories than are kept."""

    repository: str
    pulls: int
    sent: int


class PullsView(msgspec.Struct, frozen=True):
    """All that is shown of pulls. recent: newest first. slowest: of the last hour. had_share: of the layers of the
    last hour's pulls, what the clients had, from 0 to 1; None where there were none. outcomes: pulls since the start.
    more_running: how many run, and began before those that are told.
    """

    latency: Quantiles
    outcomes: dict[str, int]
    had_share: float | None
    running: tuple[PullSummary, ...]
    recent: tuple[PullSummary, ...]
    slowest: tuple[PullSummary, ...]
    repositories: tuple[RepositoryCount, ...]
    more_running: int = 0


class PullsBrief(msgspec.Struct, frozen=True):
    """The same in a few numbers."""

    latency: Quantiles
    outcomes: dict[str, int]
    had_share: float | None
