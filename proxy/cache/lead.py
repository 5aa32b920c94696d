"""Leading a fill: generation after generation until one is committed, by whoever holds the digest's claim.

State of one attempt at a generation: `_Attempt`. What readers see of it: its `Generation`; what other processes see:
the spool's record and the claim.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from metrics.events import Emit, FillFinished, FillResumed, FillStarted, VerificationFailed
from proxy.cache.endings import outcome_of, reason_of
from proxy.cache.generation import Generation
from proxy.cache.near import Asker, Fleet
from proxy.cache.plan import Candidate, releasable
from proxy.cache.progress import Verdict
from proxy.cache.supply import Delivery, SizeConflict, Supply, Withdrawn, Witness
from proxy.cache.writer import SpoolWriter
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, RegistryError, Unavailable
from proxy.oci.names import Repository
from proxy.store.catalog import Proof
from proxy.store.claims import Claim, Lender
from proxy.store.errors import CatalogError
from proxy.store.record import Verdict as RecordedVerdict
from proxy.store.spool import Spool
from proxy.store.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """What every fill of a cache works with. proof: what a source proves that gave a blob."""

    store: Store
    executor: Executor
    emit: Emit
    fleet: Fleet
    witness: Witness
    proof: Proof


class Shown(Protocol):
    """The fill, as far as who leads it may touch it. `received`: bytes that came from sources.

    asker: for whom it is fetched, a client as soon as one wants it.
    """

    digest: Digest
    owner: Repository
    supply: Supply
    received: int
    asker: Asker

    def announce(self, generation: Generation) -> None:
        """Show readers a new generation."""
        ...


class _Attempt:
    """What one generation has used so far."""

    def __init__(self, *, recovered: bool) -> None:
        self.recovered = recovered
        self.public = not recovered
        self.shared = not recovered
        self.origins: set[Candidate] = set()
        self.delivery: Delivery | None = None

    def comes_from(self, delivery: Delivery) -> None:
        """Note what a delivery tells of the whole: is it public, does the fleet have it already?"""
        self.public = self.public and delivery.stream.anonymous
        self.shared = self.shared and delivery.near is not None and delivery.near.kind != "region"

    def start_over(self) -> None:
        """Forget the recovered spool: it was of a size that nobody confirms."""
        self.recovered, self.public, self.shared, self.delivery = False, True, True, None


class Lead:
    """One process's turn at filling `fill.digest`, under `claim`. `on_mismatch` hears whom wrong bytes came from."""

    def __init__(
        self, fill: Shown, claim: Claim, means: Means, on_mismatch: Callable[[Candidate | None], None]
    ) -> None:
        self.digest = fill.digest
        self.supply = fill.supply
        self._fill = fill
        self._claim = claim
        self._fleet = means.fleet
        self._store = means.store
        self._executor = means.executor
        self._emit = means.emit
        self._proof = means.proof
        self._on_mismatch = on_mismatch
        self._from_near: Counter[str] = Counter()

    async def run(self) -> int:
        """Return the size in bytes once the blob is in the store, be it by another's work.

        Raises what nobody could help: RegistryError, OSError.
        """
        spool = await self._store.resume(self.digest)
        record = await self._store.catalog.blob(self.digest)
        if record is not None and record.present:
            if spool is not None:
                await self._store.abandon(spool)
            return record.size
        started = monotonic()
        received = self._fill.received
        outcome, reason = "committed", ""
        upstream = self._fill.owner.upstream
        self._emit(FillStarted(upstream, spool.contiguous if spool is not None else 0))
        try:
            async with self._fleet.flight(self.digest, self._fill.owner, self._fill.asker) as flight:
                self.supply.flight, self.supply.tell_lender = flight, self._claim.borrows
                while (size := await self._generation(spool)) is None:
                    spool = None
                    if self.supply.roster.hopeless:
                        raise BadContent(f"every source of {self.digest} gives bytes that do not match it")
                flight.stored()
            return size
        except BaseException as error:
            outcome, reason = outcome_of(error), reason_of(error)
            raise
        finally:
            self.supply.borrows(Lender.NOBODY)
            self.supply.flight, self.supply.tell_lender = None, bool
            total, took = self._fill.received - received, monotonic() - started
            self._emit(FillFinished(upstream, outcome, total, took, dict(self._from_near), reason))

    async def _generation(self, spool: Spool | None) -> int | None:
        """Run one generation, on `spool` if there is one; return its size once committed. Raises what ended it."""
        attempt = _Attempt(recovered=spool is not None)
        generation: Generation | None = None
        writer: SpoolWriter | None = None
        try:
            spool = await self._begin(spool, attempt)
            generation = Generation(self.digest, os.dup(spool.fd), spool.size, spool.generation, spool.copied)
            follow = self._follow(generation, spool)
            writer = SpoolWriter(spool, self._executor, follow)
            self._announce(generation, spool)
            await writer.rehash_prefix()
            if not await self._receive(generation, spool, writer, attempt):
                await self._mismatch(generation, spool, writer, None)
                return None
            await writer.drain()
            if not writer.matches(self.digest):
                culprit = self.supply.roster.mismatch(attempt.origins, recovered=attempt.recovered)
                await self._mismatch(generation, spool, writer, culprit)
                return None
            generation.progress.verified(writer.written)
            self._publish(spool, writer.written, "verified")
            await self._commit(spool, writer.written, attempt)
            return writer.written
        except BaseException as error:
            if writer is not None:
                await writer.aclose()
            if spool is not None:
                await self._died(spool, generation, error)
            raise
        finally:
            if attempt.delivery is not None:
                await attempt.delivery.stream.aclose()

    async def _begin(self, spool: Spool | None, attempt: _Attempt) -> Spool:
        """Open a source first, so that whoever waits hears an error and not a short body; then have a spool."""
        if spool is None:
            attempt.delivery = await self.supply.open(0, None)
            stream, candidate = attempt.delivery.stream, attempt.delivery.candidate
            attempt.comes_from(attempt.delivery)
            return await self._store.begin(self.digest, stream.size, candidate.repository)
        if spool.size is None or spool.contiguous < spool.size:
            attempt.delivery = await self._resume(spool.contiguous, None)
            told = attempt.delivery.stream.size
            if spool.size is not None and told is not None and told != spool.size:
                await attempt.delivery.stream.aclose()
                await self._store.abandon(spool)
                attempt.start_over()
                return await self._begin(None, attempt)
        self.supply.proven.add(spool.repository)
        return spool

    async def _resume(self, offset: int, size: int | None) -> Delivery:
        delivery = await self.supply.open(offset, size)
        name = delivery.candidate.source.name
        if delivery.near is not None:
            name = delivery.near.kind
        self._emit(FillResumed(self._fill.owner.upstream, name))
        return delivery

    async def _receive(self, generation: Generation, spool: Spool, writer: SpoolWriter, attempt: _Attempt) -> bool:
        """Feed the writer until the blob is whole, going on wherever it breaks; False when sources contradict."""

        async def feed(chunk: bytes) -> None:
            self._fill.received += len(chunk)
            if delivery.near is not None:
                self._from_near[delivery.near.kind] += len(chunk)
            if progress.size is None:
                await self._store.extend(spool, writer.received + len(chunk))
            await writer.feed(chunk)

        progress = generation.progress
        while progress.size is None or writer.received < progress.size:
            try:
                delivery = attempt.delivery or await self._resume(writer.received, progress.size)
            except SizeConflict:
                self.supply.roster.mismatches += 1
                self.supply.doubt_near()
                return False
            except Withdrawn:
                self.supply.roster.mismatches += 1
                return False
            attempt.delivery = None
            if progress.size is None:
                progress.size = delivery.stream.size
            attempt.comes_from(delivery)
            self.supply.public = attempt.public
            await self.supply.read(delivery, progress.size, writer.received, feed)
            if delivery.got or delivery.broken is None:  # to say that no more comes is to give, too
                attempt.origins.add(delivery.candidate)
            if delivery.broken is None:
                break
        return True

    def _follow(self, generation: Generation, spool: Spool) -> Callable[[int], None]:
        def advance(written: int) -> None:
            generation.progress.advance(releasable(generation.progress.size, written, verified=False))
            self._publish(spool, generation.progress.releasable, "running")

        return advance

    def _publish(self, spool: Spool, releasable: int, verdict: RecordedVerdict) -> None:
        spool.publish(releasable, verdict)
        self._claim.tick()

    def _announce(self, generation: Generation, spool: Spool) -> None:
        self._fill.announce(generation)
        if spool.contiguous:
            self._follow(generation, spool)(spool.contiguous)
        self._claim.fills(spool.generation, spool.copied)

    async def _commit(self, spool: Spool, size: int, attempt: _Attempt) -> None:
        first, *others = self.supply.proven
        await self._store.commit(
            spool, size=size, repository=first, proof=self._proof, public=attempt.public, shared=attempt.shared
        )
        for repository in others:
            await self._store.catalog.prove(repository, self.digest, self._proof)

    async def _mismatch(
        self, generation: Generation, spool: Spool, writer: SpoolWriter, culprit: Candidate | None
    ) -> None:
        name = culprit.source.name if culprit else ""
        self._emit(VerificationFailed(self._fill.owner.upstream, name, self.digest))
        _log.error(
            "bytes that do not match their digest were thrown away, and are fetched again",
            extra={"digest": str(self.digest), "repository": str(self._fill.owner), "source": name or "several"},
        )
        self._on_mismatch(culprit)
        await writer.aclose()
        error = BadContent(f"the bytes received for {self.digest} do not match it; they are fetched again")
        generation.progress.broken(Verdict.CORRUPT, error)
        self._publish(spool, 0, "corrupt")
        await self._store.abandon(spool)

    async def _died(self, spool: Spool, generation: Generation | None, error: BaseException) -> None:
        if generation is not None and generation.progress.verdict is Verdict.RUNNING:
            told = error if isinstance(error, RegistryError) else Unavailable(f"the fill of {self.digest} ended")
            generation.progress.broken(Verdict.DIED, told)
            self._publish(spool, generation.progress.releasable, "died")
        # A disk that refuses is helped by what is given back; a catalog that does (it is locked) may take it later.
        refused = isinstance(error, OSError) and not isinstance(error, CatalogError)
        keep = spool.contiguous > 0 and not refused and not isinstance(error, BadContent)
        await asyncio.shield(self._store.park(spool) if keep else self._store.abandon(spool))
