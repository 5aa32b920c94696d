"""One pull as it goes: its manifests, its blobs, its requests, and what they come to. Which request is whose is
`tracking`'s to say. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metrics.events import BlobStarted, PullEnded, RequestFinished
from metrics.pulls.agents import COPIERS
from metrics.pulls.model import Bar, Part, PullDetail, PullSummary, State

MOST_BARS = 512
MOST_BLOBS = 4096
_UNKNOWN_PLATFORM = "unknown/unknown"
_NEAR = frozenset({"neighbour", "bucket", "redirected", "region"})
_FAR = frozenset({"miss", "relayed"})
_GOOD = frozenset({200, 206, 304, 307})

Parts = tuple[Part, ...]
BarRole = Literal["manifest", "config", "layer", "other"]


@dataclass(slots=True)
class Blob:
    """What a pull had of a blob. bad: the last request that ended did so before its end."""

    sent: int = 0
    under_way: int = 0
    whole: bool = False
    bad: bool = False


@dataclass(slots=True)
class UnderWay:
    """A request that has begun. teller: the process that told of it."""

    step: BlobStarted
    teller: int


@dataclass(slots=True)
class Pull:
    """State: all that its requests have told.

    manifests: what each one that was asked for names, None while that is not known; named: all that they name.
    fetched: those whose body left.
    """

    id: str
    upstream: str
    repository: str
    reference: str
    digest: str
    agent: str
    started: float
    ended: float = 0.0
    first_blob: float | None = None
    manifests: dict[str, Parts | None] = field(default_factory=dict)
    named: dict[str, Part] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    blobs: dict[str, Blob] = field(default_factory=dict)
    under_way: dict[str, UnderWay] = field(default_factory=dict)
    outcomes: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    sent: int = 0
    steps: list[RequestFinished] = field(default_factory=list)
    more: int = 0

    @property
    def by_digest(self) -> bool:
        """It was begun by a digest, not by a tag."""
        return ":" in self.reference

    def awaits(self, digest: str) -> bool:
        """Tell whether the client may ask for this manifest in this pull: it, or an index of it, names the digest."""
        if digest == self.digest or digest in self.manifests:
            return digest not in self.fetched or self.first_blob is None
        if digest in self.named:
            return True
        return self.first_blob is None and None in self.manifests.values()

    def names(self, digest: str) -> bool:
        """Tell whether a manifest that was asked for has this blob."""
        part = self.named.get(digest)
        return part is not None and part.role != "manifest"

    def lacks(self, digest: str) -> bool:
        """Tell whether the blob was not sent whole."""
        blob = self.blobs.get(digest)
        return blob is None or not blob.whole

    def asks(self, digest: str) -> bool:
        """Tell whether the blob is under way."""
        blob = self.blobs.get(digest)
        return blob is not None and blob.under_way > 0

    def add_manifest(self, step: RequestFinished, parts: Parts | None) -> None:
        """A request for a manifest of it was answered."""
        self._add(step)
        if step.status not in _GOOD:
            self.failed.add(step.reference)
            return
        self.failed.discard(step.reference)
        self.outcomes.add(step.outcome)
        if step.digest:
            self.learn(step.digest, parts)
            if step.method == "GET":
                self.fetched.add(step.digest)

    def learn(self, digest: str, parts: Parts | None) -> None:
        """Take note of what a manifest of it names."""
        if parts is None:
            if not self.manifests.get(digest):
                self.manifests[digest] = None
            return
        self.manifests[digest] = parts
        self.named.update((part.digest, part) for part in parts)

    def begin_blob(self, step: BlobStarted, teller: int) -> None:
        """A request for a blob began."""
        blob = self._blob(step.digest)
        if blob is None:
            return
        self.first_blob = step.started if self.first_blob is None else min(self.first_blob, step.started)
        blob.under_way += 1
        self.under_way[step.request_id] = UnderWay(step, teller)

    def end_blob(self, step: RequestFinished) -> None:
        """A request for a blob ended, whether its begin was told or not."""
        self._add(step)
        began = self.under_way.pop(step.request_id, None)
        blob = self._blob(step.digest)
        if blob is None:
            return
        self.first_blob = step.started if self.first_blob is None else min(self.first_blob, step.started)
        if began is not None:
            blob.under_way -= 1
        blob.sent += step.sent
        good = step.status in _GOOD
        if good:
            self.outcomes.add(step.outcome)
        size = self._size(step.digest)
        blob.whole = blob.whole or (good and step.status != 206) or (size is not None and 0 < size <= blob.sent)
        blob.bad = not good and not blob.whole

    def give_up(self, request_id: str, now: float) -> None:
        """Nobody will tell of the end of this request."""
        step = self.under_way.pop(request_id).step
        blob = self.blobs[step.digest]
        blob.under_way -= 1
        blob.bad = not blob.whole
        self.ended = max(self.ended, now)
        self.more += 1

    def complete(self) -> bool:
        """Tell whether all of the image was sent: then nothing is left to ask for."""
        if self.under_way or None in self.manifests.values():
            return False
        images = self._images()
        if self.agent in COPIERS and any(_is_index(parts) for parts in self.manifests.values() if parts):
            return False
        return bool(images) and not any(self.lacks(part.digest) for parts in images for part in parts)

    def state(self, *, running: bool) -> State:
        """Return how it is, or has ended."""
        if running:
            return "running"
        if self.failed or any(blob.bad for blob in self.blobs.values()):
            return "broken"
        return "unchanged" if all(self._role(digest) == "config" for digest in self.blobs) else "done"

    def summary(self, epoch: float, now: float | None = None) -> PullSummary:
        """Return it for a list, as it ended, or as it is at `now`. epoch: the unix time of monotonic 0."""
        state = self.state(running=now is not None)
        layers = self._layers()
        had = [part for part in layers.values() if part.digest not in self.blobs]
        return PullSummary(
            id=self.id,
            image=f"{self.upstream}/{self.repository}{'@' if self.by_digest else ':'}{self.reference}",
            digest=str(self.digest),
            platform=self._platform(),
            agent=self.agent,
            state=state,
            outcome=state if state in ("unchanged", "broken") else self._outcome(),
            started_at=self.started + epoch,
            seconds=max(0.0, (now if now is not None and self.under_way else self.ended) - self.started),
            sent=self.sent,
            layers=len(layers),
            had=len(had),
            layer_bytes=sum(part.size for part in layers.values()),
            had_bytes=sum(part.size for part in had),
        )

    def detail(self, epoch: float, now: float | None = None) -> PullDetail:
        """Return it with its requests, as `summary`."""
        bars = [self._bar(step) for step in self.steps]
        if now is not None:
            bars += [self._begun(one.step, now) for one in self.under_way.values()]
        bars.sort(key=lambda bar: bar.start)
        return PullDetail(self.summary(epoch, now), tuple(bars), self.more)

    def _add(self, step: RequestFinished) -> None:
        self.ended = max(self.ended, step.started + step.duration)
        self.sent += step.sent
        if len(self.steps) < MOST_BARS:
            self.steps.append(step)
        else:
            self.more += 1

    def _blob(self, digest: str) -> Blob | None:
        if digest not in self.blobs and len(self.blobs) >= MOST_BLOBS:
            return None
        return self.blobs.setdefault(digest, Blob())

    def _images(self) -> list[Parts]:
        """Return what the images name that were asked for, attestations not counted where there are others."""
        images = {digest: parts for digest, parts in self.manifests.items() if parts and not _is_index(parts)}
        beside = {part.digest for part in self.named.values() if part.platform == _UNKNOWN_PLATFORM}
        return [parts for digest, parts in images.items() if digest not in beside] or list(images.values())

    def _layers(self) -> dict[str, Part]:
        return {part.digest: part for parts in self._images() for part in parts if part.role == "layer"}

    def _platform(self) -> str:
        platforms = {
            part.platform for part in self.named.values() if part.role == "manifest" and part.digest in self.manifests
        }
        platforms -= {_UNKNOWN_PLATFORM}
        return platforms.pop() if len(platforms) == 1 else ""

    def _size(self, digest: str) -> int | None:
        part = self.named.get(digest)
        return None if part is None else part.size

    def _role(self, digest: str) -> BarRole:
        part = self.named.get(digest)
        return "other" if part is None else part.role

    def _outcome(self) -> str:
        if self.outcomes & _FAR:
            return "miss"
        if "joined" in self.outcomes:
            return "joined"
        return "near" if self.outcomes & _NEAR else "hit"

    def _bar(self, step: RequestFinished) -> Bar:
        first_byte = min(step.first_byte, step.duration)
        upstream = min(step.upstream_wait, first_byte)
        return Bar(
            role="manifest" if step.kind == "manifest" else self._role(step.digest),
            reference=str(step.reference),
            digest=str(step.digest),
            size=self._size(step.digest) or step.sent,
            outcome=step.outcome,
            status=step.status,
            start=step.started - self.started,
            wait=first_byte - upstream,
            upstream=upstream,
            transfer=step.duration - first_byte,
            sent=step.sent,
        )

    def _begun(self, step: BlobStarted, now: float) -> Bar:
        return Bar(
            role=self._role(step.digest),
            reference=str(step.digest),
            digest=str(step.digest),
            size=self._size(step.digest) or 0,
            outcome="running",
            status=0,
            start=step.started - self.started,
            wait=0.0,
            upstream=0.0,
            transfer=max(0.0, now - step.started),
            sent=0,
        )


def ended_of(upstream: str, pull: PullSummary) -> PullEnded:
    """Return what the metrics are told of a pull that ended."""
    return PullEnded(
        upstream,
        pull.outcome,
        pull.seconds,
        pull.sent,
        pull.layers,
        pull.had,
        pull.layer_bytes,
        pull.had_bytes,
    )


def _is_index(parts: Parts) -> bool:
    return any(part.role == "manifest" for part in parts)
