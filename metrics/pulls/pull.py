"""One pull as it goes: its manifests, its blobs, its requests, and what they come to. Which request is whose is
`tracking`'s to say. Times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice

from metrics.events import BlobStarted, RequestFinished
from metrics.pulls.agents import COPIERS
from metrics.pulls.bars import bar_of, bar_under_way, cut_off, role_of
from metrics.pulls.closures import UNKNOWN_PLATFORM, Closure
from metrics.pulls.model import Part, PullDetail, PullSummary, State

MOST_BARS = 512
MOST_BLOBS = 4096
MOST_MANIFESTS = 256
MOST_MERGED = 10_000
ANEW_SECONDS = 1.0
_NOTHING = Closure()
_NEAR = frozenset({"neighbour", "bucket", "redirected", "region"})
_FAR = frozenset({"miss", "relayed"})
_GOOD = frozenset({200, 206, 304, 307})


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


@dataclass(slots=True, eq=False)
class Pull:
    """State: all that its requests have told.

    manifests: what each one that was asked for names, None while that is not known. fetched: those whose body left.
    chosen: what the images of them name together; missing: how many blobs of it were not sent whole; asked,
    asked_bytes: its layers that were asked for. looked: when its tag was looked at last before anything was fetched:
    behind one address others may have done so before.
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
    manifests: dict[str, Closure | None] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    chosen: Closure = _NOTHING
    missing: int = 0
    asked: int = 0
    asked_bytes: int = 0
    looked: float = 0.0
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

    @property
    def begin(self) -> float:
        """When the client began whose pull it is."""
        return max(self.started, self.looked)

    def awaits(self, digest: str) -> bool:
        """Tell whether the client may ask for this manifest in this pull: it, or an index of it, names the digest."""
        if digest == self.digest or digest in self.manifests:
            return digest not in self.fetched or self.first_blob is None
        if self._part(digest) is not None:
            return True
        return self.first_blob is None and None in self.manifests.values()

    def names(self, digest: str) -> bool:
        """Tell whether a manifest that was asked for has this blob."""
        part = self._part(digest)
        return part is not None and part.role != "manifest"

    def lacks(self, digest: str) -> bool:
        """Tell whether the blob was not sent whole."""
        blob = self.blobs.get(digest)
        return blob is None or not blob.whole

    def asks(self, digest: str) -> bool:
        """Tell whether the blob is under way."""
        blob = self.blobs.get(digest)
        return blob is not None and blob.under_way > 0

    def kept(self) -> int:
        """Return how much is kept of it, in things that take some hundred bytes."""
        merged = 0 if self.chosen in self.manifests.values() else len(self.chosen.parts)
        return len(self.steps) + len(self.blobs) + len(self.under_way) + len(self.manifests) + merged

    def add_manifest(self, step: RequestFinished, closure: Closure | None) -> None:
        """A request for a manifest of it was answered."""
        if self._looks_anew(step):
            self.looked = step.started
        self._add(step)
        if step.status not in _GOOD:
            self.failed.add(step.reference)
            return
        self.failed.discard(step.reference)
        self.outcomes.add(step.outcome)
        if step.digest:
            self.learn(step.digest, closure)
            if step.method == "GET":
                self.fetched.add(step.digest)

    def learn(self, digest: str, closure: Closure | None) -> None:
        """Take note of what a manifest of it names."""
        if digest not in self.manifests and len(self.manifests) >= MOST_MANIFESTS:
            return
        if closure is None:
            self.manifests.setdefault(digest, None)
        elif self.manifests.get(digest) is not closure:
            self.manifests[digest] = closure
            self._choose()

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
        if not blob.whole and ((good and step.status != 206) or self._has_all(step.digest, blob)):
            blob.whole = True
            self.missing -= step.digest in self.chosen.parts
        blob.bad = not good and not blob.whole

    def give_up(self, request_id: str, now: float) -> None:
        """Nobody will tell of the end of this request."""
        step = self.under_way.pop(request_id).step
        blob = self.blobs[step.digest]
        blob.under_way -= 1
        blob.bad = not blob.whole
        self._add(cut_off(step, now))

    def complete(self) -> bool:
        """Tell whether all of the image was sent: then nothing is left to ask for."""
        if self.under_way or self.missing or not self.chosen.parts or None in self.manifests.values():
            return False
        if len(self.manifests) >= MOST_MANIFESTS:
            return False
        return self.agent not in COPIERS or not any(closure.is_index for closure in self.manifests.values() if closure)

    def state(self, *, running: bool) -> State:
        """Return how it is, or has ended."""
        if running:
            return "running"
        if self.failed or any(blob.bad and self._matters(digest) for digest, blob in self.blobs.items()):
            return "broken"
        return "unchanged" if all(role_of(self._part(digest)) == "config" for digest in self.blobs) else "done"

    def summary(self, epoch: float, now: float | None = None) -> PullSummary:
        """Return it for a list, as it ended, or as it is at `now`. epoch: the unix time of monotonic 0."""
        state = self.state(running=now is not None)
        return PullSummary(
            id=self.id,
            image=f"{self.upstream}/{self.repository}{'@' if self.by_digest else ':'}{self.reference}",
            digest=str(self.digest),
            platform=self._platform(),
            agent=self.agent,
            state=state,
            outcome=state if state in ("unchanged", "broken") else self._outcome(),
            started_at=self.begin + epoch,
            seconds=max(0.0, (now if now is not None and self.under_way else self.ended) - self.begin),
            sent=self.sent,
            layers=self.chosen.layers,
            had=self.chosen.layers - self.asked,
            layer_bytes=self.chosen.layer_bytes,
            had_bytes=self.chosen.layer_bytes - self.asked_bytes,
        )

    def detail(self, epoch: float, now: float | None = None) -> PullDetail:
        """Return it with its requests, as `summary`."""
        began = self.begin
        bars = [bar_of(step, self._part(step.digest), began) for step in self.steps if step.started >= began]
        if now is not None:
            begun = (one.step for one in self.under_way.values())
            bars += [bar_under_way(step, self._part(step.digest), began, now) for step in begun]
        bars.sort(key=lambda bar: bar.start)
        return PullDetail(self.summary(epoch, now), tuple(bars), self.more)

    def _looks_anew(self, step: RequestFinished) -> bool:
        """Tell whether a request for the tag is another client's than those before: theirs have ended, with no more."""
        if self.fetched or self.failed or self.first_blob is not None or ":" in step.reference:
            return False
        return step.started > self.ended + (0.0 if step.method == "HEAD" else ANEW_SECONDS)

    def _add(self, step: RequestFinished) -> None:
        self.ended = max(self.ended, step.started + step.duration)
        self.sent += step.sent
        if len(self.steps) < MOST_BARS:
            self.steps.append(step)
        else:
            self.more += 1

    def _blob(self, digest: str) -> Blob | None:
        blob = self.blobs.get(digest)
        if blob is None and len(self.blobs) < MOST_BLOBS:
            blob = self.blobs[digest] = Blob()
            self._ask(digest)
        return blob

    def _ask(self, digest: str) -> None:
        part = self.chosen.parts.get(digest)
        if part is not None and part.role == "layer":
            self.asked += 1
            self.asked_bytes += part.size

    def _choose(self) -> None:
        """Find the images among the manifests, attestations not counted where there are others, and what is left."""
        images = {digest: found for digest, found in self.manifests.items() if found and _is_image(found)}
        chosen = [found for digest, found in images.items() if self._child(digest) != UNKNOWN_PLATFORM]
        chosen = chosen or list(images.values())
        if len(chosen) == 1:
            self.chosen = chosen[0]
        elif chosen:
            parts = chain.from_iterable(found.parts.values() for found in chosen)
            self.chosen = Closure(islice(parts, MOST_MERGED))
        self.asked = self.asked_bytes = 0
        for digest, blob in self.blobs.items():
            self._ask(digest)
            blob.whole = blob.whole or self._has_all(digest, blob)
            blob.bad = blob.bad and not blob.whole
        self.missing = len(self.chosen.parts) - sum(
            blob.whole for digest, blob in self.blobs.items() if digest in self.chosen.parts
        )

    def _has_all(self, digest: str, blob: Blob) -> bool:
        size = self._size(digest)
        return size is not None and 0 < size <= blob.sent

    def _matters(self, digest: str) -> bool:
        """Tell whether a pull without this blob is broken; what no manifest names it may do without (P40)."""
        return not self.chosen.parts or self.names(digest)

    def _child(self, digest: str) -> str:
        """Return the platform that an index says that a manifest is of."""
        for closure in self.manifests.values():
            if closure is not None and closure.is_index and (part := closure.parts.get(digest)) is not None:
                return part.platform
        return ""

    def _platform(self) -> str:
        platforms = {self._child(digest) for digest in self.manifests} - {UNKNOWN_PLATFORM, ""}
        return platforms.pop() if len(platforms) == 1 else ""

    def _part(self, digest: str) -> Part | None:
        for closure in self.manifests.values():
            if closure is not None and (part := closure.parts.get(digest)) is not None:
                return part
        return None

    def _size(self, digest: str) -> int | None:
        part = self._part(digest)
        return None if part is None else part.size

    def _outcome(self) -> str:
        if self.outcomes & _FAR:
            return "miss"
        if "joined" in self.outcomes:
            return "joined"
        return "near" if self.outcomes & _NEAR else "hit"


def _is_image(closure: Closure) -> bool:
    return bool(closure.parts) and not closure.is_index
