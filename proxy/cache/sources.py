"""Asking the sources of an upstream in order, and what their refusals mean to a client."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import TypeVar

from proxy.cache.hedging import Race
from proxy.oci.errors import Denied, NameUnknown, NotFound, RegistryError, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.source import Source
from proxy.store.records import Proof

FAILED_SECONDS = 10.0
REACHED_SECONDS = 1.0

T = TypeVar("T")


class Upstreams:
    """The sources per upstream name, the main one first. With `offline` none is ever asked.

    `reachable` tells whether an upstream answered when it was last asked, no more than `REACHED_SECONDS` ago. `proof`:
    what it proves that a source gave something.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Source]],
        *,
        offline: bool,
        reachable: Callable[[str], bool],
        proof: Proof = Proof.FETCHED,
    ) -> None:
        self._sources = sources
        self._reachable = reachable
        self._failed: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self.offline = offline
        self.proof = proof

    def reachable(self, upstream: str) -> bool:
        """Tell whether asking `upstream` has a chance now."""
        if self.offline:
            return False
        return self._reachable(upstream) or monotonic() - self._heard.get(upstream, -math.inf) <= REACHED_SECONDS

    def heard(self, upstream: str, age: float) -> None:
        """Note that `upstream` answered another node of the fleet `age` seconds ago."""
        self._heard[upstream] = max(self._heard.get(upstream, -math.inf), monotonic() - age)

    def of(self, repository: Repository) -> Sequence[Source]:
        """Return whom to ask. Raises NameUnknown for an unknown upstream, Unavailable when offline."""
        sources = self._sources.get(repository.upstream)
        if sources is None:
            raise NameUnknown(f"no upstream {repository.upstream!r} is configured")
        if self.offline:
            raise Unavailable(f"{repository} is not complete in the cache, and the mirror is offline")
        return sources

    def for_fill(self, repository: Repository) -> Sequence[Source]:
        """Return whom a fill may ask besides those who are near: nobody when offline. Raises NameUnknown."""
        return () if self.offline and repository.upstream in self._sources else self.of(repository)

    def _failed_lately(self, source: Source) -> bool:
        return monotonic() - self._failed.get(source.name, -FAILED_SECONDS) < FAILED_SECONDS

    async def ask(
        self,
        repository: Repository,
        question: Callable[[Source], Awaitable[T]],
        missing: type[NotFound],
        *,
        elsewhere: tuple[type[RegistryError], ...] = (NotFound, Transient),
    ) -> T:
        """Return the first answer; sources that failed in the last seconds are asked after the others.

        Whoever is silent for `HEDGE_SECONDS` goes on being waited for, while the next is asked beside it. A no from an
        alternate sends the question on, as its content may be a part. From the main source only an error of a kind in
        `elsewhere` does. Raises what the main source said when nobody could answer; a refusal (401, 403) becomes
        `missing` (P34).
        """
        main, *_ = sources = self.of(repository)
        verdict: RegistryError | None = None
        async with Race(sorted(sources, key=self._failed_lately), question) as race:
            while (answer := await race.next()) is not None:
                source, outcome = answer
                if not isinstance(outcome, RegistryError):
                    return outcome
                if isinstance(outcome, Transient):
                    self._failed[source.name] = monotonic()
                if source is main:
                    verdict = outcome
                    if not isinstance(outcome, elsewhere):
                        break
        if verdict is None:
            raise Unavailable(f"upstream {repository.upstream} has no source")
        if isinstance(verdict, Denied):
            raise missing(
                f"{repository.upstream} refuses access to {repository.path}, or it does not exist"
            ) from verdict
        raise verdict
