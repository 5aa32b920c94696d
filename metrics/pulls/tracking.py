"""Tells pulls from requests: steps go in, pulls that have ended come out. Pure: no clock, no catalog, no metrics.

A client is an address and a User-Agent: those who share both are told apart by what they ask for, as far as that goes.
Steps may come out of order, from several processes that tell of theirs in turns, and twice.

Times are monotonic seconds; `now` is when a step is looked at.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from itertools import islice

from metrics.events import BlobStarted, RequestFinished
from metrics.pulls.agents import agent_of
from metrics.pulls.closures import Closure, Closures
from metrics.pulls.model import Step
from metrics.pulls.places import Place, Places, place_of
from metrics.pulls.pull import Pull

QUIET_SECONDS = 5.0
LATE_SECONDS = 3.0
ABANDONED_SECONDS = 86_400.0
MOST_PULLS = 4096
MOST_KEPT = 100_000
MOST_EARLY = 4096
MOST_ENDED_REQUESTS = 16_384
ENDED_AT_ONCE = 100
_REFUSED = frozenset({400, 401, 403, 404, 405, 406, 416, 429})
_REFERRERS_TAG = re.compile(r"sha(256|512)-[0-9a-f]{32,}")


class Tracker:
    """State: the pulls that run, by place and age; steps that came before the pull that they belong to.

    bare: those that no blob was asked for in: where there are too many, they are given up before others. kept: how much
    is kept of all pulls.

    settle: for so long a pull that is complete waits for steps that other processes have not told of yet.
    names: gives each pull its id. most_kept: bounds what is kept of all pulls.
    """

    def __init__(self, names: Callable[[], str], *, settle: float = 0.0, most_kept: int = MOST_KEPT) -> None:
        self._names = names
        self._settle = settle
        self._most_kept = most_kept
        self._closures = Closures()
        self._pulls: OrderedDict[str, Pull] = OrderedDict()
        self._bare: OrderedDict[str, Pull] = OrderedDict()
        self._kept: dict[str, int] = {}
        self._kept_of_all = 0
        self._places = Places()
        self._due: dict[str, float] = {}
        self._requests: dict[str, Pull] = {}
        self._early: OrderedDict[str, tuple[Step, int, float]] = OrderedDict()
        self._early_at: dict[Place, dict[str, None]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._given_up: list[Pull] = []

    def __len__(self) -> int:
        return len(self._pulls)

    def running(self) -> list[Pull]:
        """Return the pulls that run, oldest first."""
        return list(self._pulls.values())

    def get(self, name: str) -> Pull | None:
        """Return a running pull by its id."""
        return self._pulls.get(name)

    def unknown(self, asked: Collection[str] = ()) -> set[str]:
        """Return the manifests of which nobody has said what they name, of those `asked` for and of pulls that run."""
        missing = {digest for digest in asked if self._closures.get(digest) is None}
        for pull in self._pulls.values():
            missing.update(digest for digest, closure in pull.manifests.items() if closure is None)
        return missing

    def learn(self, digest: str, closure: Closure, now: float) -> None:
        """Take note of what a manifest names; an empty closure where it cannot be found out."""
        if closure.parts:
            self._closures.put(digest, closure)
        for pull in list(self._pulls.values()):
            if digest in pull.manifests and pull.manifests[digest] is None:
                pull.learn(digest, closure)
                self._look_at(pull, now)
                self._replay(self._places.of(pull), now)

    def take(self, step: Step, now: float, teller: int = 0) -> None:
        """Take a step that the process `teller` has told of."""
        if isinstance(step, BlobStarted):
            if step.request_id not in self._requests and step.request_id not in self._ended:
                self._blob_started(step, now, teller)
        elif step.request_id not in self._ended:
            self._ended[step.request_id] = None
            if len(self._ended) > MOST_ENDED_REQUESTS:
                self._ended.popitem(last=False)
            if step.kind == "manifest":
                self._manifest(step, now)
            elif step.kind == "blob" and step.method == "GET":
                self._blob_finished(step, now, teller)
        while self._kept_of_all > self._most_kept:
            largest = max(self._kept, key=self._kept.__getitem__)
            self._given_up.append(self._forget(self._pulls[largest]))

    def lost(self, teller: int, now: float) -> None:
        """A process is gone: what it had under way is not."""
        for pull in list(self._pulls.values()):
            for name in [name for name, one in pull.under_way.items() if one.teller == teller]:
                self._give_up(pull, name, now)
        for name in [name for name, (_, who, _) in self._early.items() if who == teller]:
            self._drop_early(name)

    def tick(self, now: float) -> list[Pull]:
        """Return pulls that have ended by `now`, none where there are no more; they are forgotten here."""
        for name in list(islice((name for name, due in self._due.items() if due <= now), ENDED_AT_ONCE)):
            pull = self._pulls[name]
            for request in [
                request for request, one in pull.under_way.items() if one.step.started + ABANDONED_SECONDS <= now
            ]:
                self._give_up(pull, request, now)
            if self._due[name] <= now:
                self._given_up.append(self._forget(pull))
        self._place_late(now)
        ended, self._given_up = self._given_up, []
        return ended

    def deadline(self) -> float | None:
        """Return when `tick` has something to do, should nothing happen before; None: never."""
        if self._given_up:
            return 0.0
        late = [kept + LATE_SECONDS for _, _, kept in islice(self._early.values(), 1)]
        return min([*self._due.values(), *late], default=None)

    def _manifest(self, step: RequestFinished, now: float) -> None:
        if _REFERRERS_TAG.match(step.reference):
            return
        pull = self._of_manifest(step)
        if pull is None:
            if step.status in _REFUSED or step.method not in ("GET", "HEAD"):
                return
            pull = self._begin(step)
        pull.add_manifest(step, self._closures.get(step.digest))
        self._look_at(pull, now)
        self._replay(place_of(step), now)

    def _of_manifest(self, step: RequestFinished) -> Pull | None:
        """Return the running pull that a manifest is asked for in, None where it begins another."""
        place = place_of(step)
        if ":" in step.reference:
            waiting = [pull for pull in self._places.at(place) if pull.awaits(step.reference)]
            lacking = [pull for pull in waiting if step.reference not in pull.fetched]
            return lacking[-1] if lacking else next(iter(waiting), None)
        for pull in self._places.of_tag(place, step.reference):
            if pull.by_digest:
                if abs(pull.started - step.started) < LATE_SECONDS and self._begun_without(pull, step):
                    return self._rename(pull, step)
            elif (pull.first_blob is None or step.started < pull.first_blob) and abs(
                step.started - pull.started
            ) < QUIET_SECONDS:
                return self._rename(pull, step)
        return None

    def _begun_without(self, pull: Pull, step: RequestFinished) -> bool:
        """Tell whether a pull is of the image of a tag's manifest, of which it was not told as yet."""
        if step.started > pull.started:
            return False
        closure = self._closures.get(step.digest)
        return pull.digest == step.digest or (closure is not None and pull.digest in closure.parts)

    def _rename(self, pull: Pull, step: RequestFinished) -> Pull:
        """Let a pull be of the tag and the manifest that were asked for; its begin is the earliest that is known."""
        if pull.reference != step.reference:
            self._places.rename(pull, step.reference)
        pull.digest = step.digest or pull.digest
        pull.started = min(pull.started, step.started)
        return pull

    def _begin(self, step: RequestFinished) -> Pull:
        if len(self._pulls) >= MOST_PULLS:
            self._given_up.append(self._forget(next(iter((self._bare or self._pulls).values()))))
        pull = Pull(
            id=self._names(),
            upstream=step.upstream,
            repository=step.repository,
            reference=step.reference,
            digest=step.digest,
            agent=agent_of(step.agent),
            started=step.started,
        )
        self._pulls[pull.id] = self._bare[pull.id] = pull
        self._kept[pull.id] = 0
        self._places.add(place_of(step), pull)
        return pull

    def _blob_started(self, step: BlobStarted, now: float, teller: int) -> None:
        pull = self._of_blob(step)
        if pull is None:
            self._keep(step, teller, now)
        else:
            self._add_blob(pull, step, now, teller)

    def _blob_finished(self, step: RequestFinished, now: float, teller: int) -> None:
        pull = self._requests.pop(step.request_id, None)
        if pull is None:
            self._drop_early(step.request_id)  # its begin: the end tells all of it
            pull = self._of_blob(step)
        if pull is None:
            self._keep(step, teller, now)
        else:
            self._add_blob(pull, step, now, teller)

    def _of_blob(self, step: Step) -> Pull | None:
        """Return the pull that a blob is asked for in, as far as that is certain by now."""
        wanting = self._wanting(step)
        return self._guessed(step) if wanting is None and not self._settle else wanting

    def _wanting(self, step: Step) -> Pull | None:
        """Return the oldest pull that lacks the blob, rather one that has not asked for it but did for the manifest."""
        wanting = [pull for pull in self._here(step) if pull.names(step.digest) and pull.lacks(step.digest)]
        return min(wanting, key=lambda pull: (pull.asks(step.digest), not pull.fetched), default=None)

    def _guessed(self, step: Step) -> Pull | None:
        """Return the newest pull of the repository, rather one that has the blob for a part."""
        here = self._here(step)
        return next((pull for pull in reversed(here) if pull.names(step.digest)), here[-1] if here else None)

    def _here(self, step: Step) -> list[Pull]:
        return [pull for pull in self._places.at(place_of(step)) if pull.started <= step.started]

    def _keep(self, step: Step, teller: int, now: float) -> None:
        """Keep a blob's step for the pull that it belongs to, of which another process may still tell."""
        self._early[step.request_id] = step, teller, now
        self._early_at.setdefault(place_of(step), {})[step.request_id] = None
        if len(self._early) > MOST_EARLY:
            self._drop_early(next(iter(self._early)))

    def _drop_early(self, name: str) -> None:
        step, _, _ = self._early.pop(name, (None, 0, 0.0))
        if step is not None:
            here = self._early_at[place_of(step)]
            del here[name]
            if not here:
                del self._early_at[place_of(step)]

    def _replay(self, place: Place, now: float) -> None:
        """Look again at steps of a place of which more is known."""
        for name in list(self._early_at.get(place, ())):
            step, teller, _ = self._early[name]
            if (pull := self._wanting(step)) is not None:
                self._drop_early(name)
                self._add_blob(pull, step, now, teller)

    def _place_late(self, now: float) -> None:
        """Give steps that have waited for long enough to the pull that is likeliest, or nobody."""
        while self._early:
            name, (step, teller, kept) = next(iter(self._early.items()))
            if kept + LATE_SECONDS > now:
                return
            self._drop_early(name)
            if (pull := self._wanting(step) or self._guessed(step)) is not None:
                self._add_blob(pull, step, now, teller)

    def _add_blob(self, pull: Pull, step: Step, now: float, teller: int) -> None:
        if isinstance(step, BlobStarted):
            pull.begin_blob(step, teller)
            if step.request_id in pull.under_way:
                self._requests[step.request_id] = pull
        else:
            pull.end_blob(step)
        self._bare.pop(pull.id, None)
        self._look_at(pull, now)

    def _give_up(self, pull: Pull, request: str, now: float) -> None:
        self._requests.pop(request, None)
        pull.give_up(request, now)
        self._look_at(pull, now)

    def _look_at(self, pull: Pull, now: float) -> None:
        """Find out when a pull is over, should it tell nothing more."""
        if pull.under_way:
            self._due[pull.id] = ABANDONED_SECONDS + next(iter(pull.under_way.values())).step.started
        elif pull.complete():
            self._due[pull.id] = now + self._settle
        else:
            self._due[pull.id] = now + QUIET_SECONDS
        kept = pull.kept()
        self._kept_of_all += kept - self._kept[pull.id]
        self._kept[pull.id] = kept

    def _forget(self, pull: Pull) -> Pull:
        self._places.remove(pull)
        self._kept_of_all -= self._kept.pop(pull.id)
        self._bare.pop(pull.id, None)
        del self._pulls[pull.id]
        self._due.pop(pull.id, None)
        for name in list(pull.under_way):
            self._requests.pop(name, None)
        return pull


class Repeats:
    """State: the manifests that were asked for since each place's last blob.

    Who asks for the same again and again pulls nothing; behind one address whoever asks after blobs is another.
    """

    def __init__(self) -> None:
        self._seen: dict[Place, set[tuple[str, str, str]]] = {}

    def has(self, step: Step) -> bool:
        """Tell whether a step says what an earlier one said."""
        place = place_of(step)
        if isinstance(step, BlobStarted) or step.kind != "manifest":
            self._seen.pop(place, None)
            return False
        if step.status >= 400:
            return False
        said = step.reference, step.digest, step.method
        seen = self._seen.setdefault(place, set())
        if said in seen:
            return True
        seen.add(said)
        return False
