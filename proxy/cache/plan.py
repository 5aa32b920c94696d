"""What a fill decides, without doing it: how much may leave, whom to ask next, when to give up. Pure.

A fill has a roster of candidates, each a (repository, source) pair. A candidate is in one of these states:

    fresh ──break with progress──▶ fresh, at once again      (resume by Range where it broke)
    fresh ──break without──▶ failed(n), not before retry_at  (others that failed less often go first)
    fresh ──slow to answer─▶ slow                            (others go first, then it is waited for)
    any   ──404, 401, 403──▶ refused                         (an answer: not asked again by this fill)
    any   ──wrong bytes──▶ blamed                            (not asked again by this fill)

The roster is exhausted when nobody is left; or, while no byte has come yet, when everybody has failed
once (the client should hear 503 now, P30); or when `patience` seconds have passed without progress.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, RegistryError, TooManyRequests, Unavailable
from proxy.oci.names import Repository
from proxy.oci.ranges import ByteRange
from proxy.source import BlobStream

SMALL = 1 << 20
WITHHELD = 64 << 10
FOOTER_LENGTH = 4 << 20
FOOTER_DISTANCE = 8 << 20
PROGRESS = 64 << 10
UNSIZED_LIMIT = 16 << 30


def releasable(size: int | None, contiguous: int, *, verified: bool) -> int:
    """Return how many bytes from the start may be given to readers (P38).

    Nothing of an object up to 1 MiB, and never the last 64 KiB of a larger one, before it is verified.
    """
    if verified:
        return contiguous
    if size is None:
        return max(0, contiguous - WITHHELD) if contiguous > SMALL else 0
    return 0 if size <= SMALL else min(contiguous, size - WITHHELD)


def is_far_footer(start: int, end: int | None, watermark: int) -> bool:
    """Tell whether a range is so small and so far ahead of the fill that it is relayed at once, not waited for."""
    return end is not None and end - start <= FOOTER_LENGTH and start - watermark > FOOTER_DISTANCE


class Giver(Protocol):
    """Who opens blobs: a Source, or somebody near."""

    @property
    def name(self) -> str: ...

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> BlobStream:
        """As a Source does."""
        ...


@dataclass(slots=True, eq=False)
class Candidate:
    """Somebody who may have the blob."""

    repository: Repository
    source: Giver
    failures: int = 0
    retry_at: float = 0.0
    error: RegistryError | None = None
    slow: bool = False
    refused: bool = False
    blamed: bool = False

    @property
    def usable(self) -> bool:
        return not (self.refused or self.blamed)


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this candidate now."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody may be asked for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nobody is left; `error` is what the readers are told."""

    error: RegistryError


@dataclass(slots=True)
class Roster:
    """The candidates of one fill, in the order of preference, and what became of them. Times are monotonic seconds."""

    patience: float
    candidates: list[Candidate] = field(default_factory=list)
    begun: bool = False
    progressed_at: float = 0.0
    mismatches: int = 0

    def add(self, repository: Repository, source: Giver, *, blamed: bool = False) -> None:
        """Add a candidate at the end, once."""
        for known in self.candidates:
            if known.repository == repository and known.source is source:
                return
        candidate = Candidate(repository, source, blamed=blamed)
        if blamed:
            candidate.error = BadContent(f"{source.name} gave wrong bytes for this digest a moment ago")
        self.candidates.append(candidate)

    def knows(self, repository: Repository) -> bool:
        """Tell whether a source of `repository` is among the candidates."""
        return any(candidate.repository == repository for candidate in self.candidates)

    def next(self, now: float) -> Ask | Wait | GiveUp:
        """Return whom to ask now, or how long to wait, or the error to give up with."""
        usable = [candidate for candidate in self.candidates if candidate.usable]
        if not usable:
            return GiveUp(self._worst())
        best = min(usable, key=lambda candidate: (candidate.failures, candidate.slow))
        if best.failures == 0:
            return Ask(best)
        if not self.begun or now - self.progressed_at > self.patience:
            return GiveUp(best.error or Unavailable("no source could be reached"))
        soonest = min(usable, key=lambda candidate: candidate.retry_at)
        if soonest.retry_at <= now:
            return Ask(soonest)
        if soonest.retry_at - self.progressed_at > self.patience:
            return GiveUp(soonest.error or Unavailable("no source could be reached"))
        return Wait(soonest.retry_at - now)

    def has_alternative(self, candidate: Candidate) -> bool:
        """Tell whether somebody else can be asked who has neither failed nor been slow."""
        return any(
            other is not candidate and other.usable and not other.slow and other.failures == 0
            for other in self.candidates
        )

    def broke(self, candidate: Candidate, error: RegistryError, received: int, now: float, jitter: float) -> None:
        """Note that `candidate` failed after giving `received` bytes; `jitter` in 0..1 spreads the retries."""
        candidate.error = error
        if received >= PROGRESS:
            candidate.failures = 0
            return
        candidate.failures += 1
        pause = min(2.0, 0.1 * 2**candidate.failures) * (0.5 + jitter / 2)
        if isinstance(error, TooManyRequests) and error.retry_after:
            pause = max(pause, error.retry_after)
        candidate.retry_at = now + pause

    def progressed(self, now: float) -> None:
        """Note that bytes have come."""
        self.begun = True
        self.progressed_at = now

    def refuse(self, candidate: Candidate, error: RegistryError) -> None:
        """Note an answer that asking again will not change."""
        candidate.refused, candidate.error = True, error

    def mismatch(self, origins: set[Candidate], *, recovered: bool) -> Candidate | None:
        """Note bytes that do not match their digest; return who is to blame.

        With more than one origin, or a prefix from before a restart, nobody is: all is fetched again.
        """
        self.mismatches += 1
        if recovered or len(origins) != 1:
            return None
        (culprit,) = origins
        culprit.blamed = True
        culprit.error = BadContent(f"{culprit.source.name} gave bytes that do not match the digest")
        return culprit

    @property
    def hopeless(self) -> bool:
        """So many mismatches that nobody blamed can explain them."""
        return self.mismatches > len(self.candidates) + 1

    def _worst(self) -> RegistryError:
        errors = [candidate.error for candidate in self.candidates if candidate.error]
        transient = [error for error in errors if error.status >= 500 or error.status == 429]
        nobody = Unavailable("nobody near can give it for this repository, and the mirror is offline")
        return (transient or errors or [nobody])[0]
