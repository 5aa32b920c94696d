"""A fill: one download of one digest, whoever asked for it and whoever still reads.

Theory of operation. A fill goes through generations. Each writes one spool, front to back, hashing as
it goes, from one candidate after another (`plan.Roster` says whom). A generation ends

    VERIFIED  size and digest are right: all may be read, and the store commits it; the fill is done
    CORRUPT   they are not: its readers are closed short, the spool is dropped, the next one starts
    DIED      nobody can go on: its readers are closed short, the spool is kept for a later fill

Readers hold a descriptor of their own of the generation's file and follow its `Progress`. The file they
hold outlives the rename of the commit, so a finished fill needs no hand-over. The fill runs in a task of
`Flights`; no reader's going away touches it.

One process of a node leads, who holds the digest's claim (`lead`); the fills of the others follow it (`following`),
and one of them goes on where it was when it dies or stands still. Readers see no difference.

State of a fill: `current` (the newest generation), `supply` (its sources, and which repositories have proved the
digest or been refused it), `finished` (the result, or the error), `readers` (how many there are), `leads` (this
process fills, or has).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from proxy.cache.following import Follower
from proxy.cache.generation import Generation
from proxy.cache.lead import Lead, Means
from proxy.cache.near import Asker
from proxy.cache.plan import Candidate, Roster
from proxy.cache.progress import Signal
from proxy.cache.relay import Oversized
from proxy.cache.supply import Supply
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, NotFound, RegistryError, Unavailable
from proxy.oci.names import Repository
from proxy.store.claims import Lender
from proxy.store.errors import TooLarge


class Admission(enum.Enum):
    """Whether a repository's clients may read a fill."""

    YES = "yes"
    UNPROVEN = "unproven"
    OVER = "over"


@dataclass(frozen=True)
class Committed:
    """A fill that is done: `size` bytes of the digest are in the store."""

    size: int


@dataclass(frozen=True, slots=True)
class FillStatus:
    """A running fill for people: sizes in bytes, size None while unknown."""

    digest: Digest
    repository: Repository
    size: int | None
    received: int
    readers: int
    source: str


class Arriving(NamedTuple):
    """How far a download is: bytes from the start that can be read, and how many of those were there before it."""

    there: int
    before: int


class Fill:
    """See the module. `expected` is the size that a verified manifest gave, if any, in bytes.

    `asker`: for whom it was begun, unless clients read it by now: others wait for less.
    """

    def __init__(
        self,
        digest: Digest,
        owner: Repository,
        roster: Roster,
        means: Means,
        *,
        expected: int | None,
        asker: Asker,
        on_mismatch: Callable[[Candidate | None], None],
    ) -> None:
        self.digest = digest
        self.owner = owner
        self.asker = asker
        self.current: Generation | None = None
        self.readers = 0
        self._waiting = 0
        self.changed = Signal()
        self.supply = Supply(digest, owner, roster, expected, self.changed, means.witness)
        self.finished: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self.received = 0
        self.leads = False
        self._means = means
        self._on_mismatch = on_mismatch

    @contextmanager
    def interest(self) -> Iterator[None]:
        """Count somebody who waits for it without reading."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @property
    def deserted(self) -> bool:
        """Nobody reads it, and nobody waits for it."""
        return self.readers == 0 and self._waiting == 0

    def status(self) -> FillStatus:
        """Return how far it is."""
        size = self.current.progress.size if self.current else self.supply.expected
        return FillStatus(self.digest, self.owner, size, self.received, self.readers, self.supply.source)

    @property
    def arriving(self) -> Arriving:
        """How far it is."""
        there = self.current.progress.releasable if self.current else 0
        return Arriving(there, max(0, there - self.received))

    async def admits(self, repository: Repository) -> Admission:
        """Wait until it is known whether clients of `repository` may read along (P43).

        YES: `current` can be read. UNPROVEN: others' sources give it, the repository must be asked for itself.
        OVER: it is committed, or failed before this repository had a part in it: look again.
        Raises what the repository's own sources answered.
        """
        while True:
            if self.finished.done() and self.finished.exception() is None:
                return Admission.OVER
            if repository in self.supply.refused:
                raise self.supply.refused[repository].again()
            if self.finished.done():
                return Admission.OVER
            if repository != self.owner and not self.supply.roster.knows(repository):
                return Admission.UNPROVEN
            if self.current is not None and self.current.progress.error is None:
                return Admission.YES if repository in self.supply.proven else Admission.UNPROVEN
            with self.interest():
                await self.changed.wait()

    async def admits_other(self, least: Lender) -> bool:
        """Wait until another node or region may read along; False when it is over, and the store is to be looked at.

        least: from whom on the bytes may not be borrowed for this one. Raises GatewayTimeout where they are, else what
        ended the fill.
        """
        while not self.finished.done():
            if self.supply.lender >= least:
                raise GatewayTimeout(
                    f"{self.digest} comes from another {self.supply.lender.name.lower()} here: ask there"
                )
            if self.current is not None and self.current.progress.error is None:
                return True
            with self.interest():
                await self.changed.wait()
        error = self.finished.exception()
        if isinstance(error, RegistryError):
            raise error.again()
        return False

    def announce(self, generation: Generation) -> None:
        """Show readers a new generation; those of the last one keep their descriptors."""
        if self.current is not None:
            self.current.close()
        self.current = generation
        self.changed.wake()

    async def run(self) -> None:
        """Fill, or follow another process that does, until committed or beyond hope; `finished` tells.

        Raises only what nobody foresaw.
        """
        try:
            size = await self._filled()
            self.finished.set_result(Committed(size))
            self.changed.wake()
        except RegistryError as error:
            self._end(error)
        except TooLarge as error:
            self._end(Oversized(str(error)))
        except OSError as error:
            self._means.store.space.nudge()
            self._end(Unavailable(f"the store cannot take {self.digest}: {error.strerror or error}"))
        except asyncio.CancelledError:
            self._end(Unavailable("the mirror is shutting down"))
            raise
        except BaseException:
            self._end(Unavailable(f"the fill of {self.digest} failed; the log has the reason"))
            raise
        finally:
            if self.current is not None:
                self.current.close()

    async def _filled(self) -> int:
        claim = await self._means.store.claim(self.digest)
        if claim is None:
            claim = await Follower(self, self._means.store, self._on_mismatch).until_claimed()
        self.leads = True
        try:
            return await Lead(self, claim, self._means, self._on_mismatch).run()
        finally:
            await self._means.store.release(claim)

    def _end(self, error: RegistryError) -> None:
        for candidate in self.supply.roster.candidates:
            if isinstance(error, NotFound) and candidate.error is None:
                continue  # it joined as the others' answers ended the fill: it was not asked, and looks again
            refused = candidate.error if isinstance(candidate.error, NotFound) else error
            self.supply.refused.setdefault(candidate.repository, refused)
        self.supply.refused.setdefault(self.owner, error)
        if not self.finished.done():
            self.finished.set_exception(error)
            self.finished.exception()
        self.changed.wake()
