"""One download's place in the fleet: who leads it, who has it already, and who goes on when the leader is gone.

State of a flight, decided anew whenever `next` finds no place:

    leading    the lease is ours, and is renewed while the flight lasts: those who have it are asked, then the shelf
    following  another node has the lease: it is asked for its running download
    alone      Redis does not answer, or whoever leads is of no use: as leading, without a lease

A leader that breaks off and does not answer a ping has its very lease taken from it: one of those who follow gets it,
the others follow that one. A leader that stood still for longer than its lease hears of it by its next renewal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from proxy.cache.near import Asker, NearSource
from proxy.cache.once import Background
from proxy.cache.plan import PROGRESS
from proxy.fleet.answers import Answers
from proxy.fleet.holders import Holders
from proxy.fleet.leases import BEAT_SECONDS, Lease, Leases
from proxy.fleet.link import LinkDown
from proxy.fleet.neighbours import Neighbours, Refused
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, RegistryError
from proxy.oci.names import Repository

FRUITLESS = 3
PAUSE_SECONDS = 0.05

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Others:
    """The other nodes, and what they share in Redis. `leases` None: whoever works here leads nothing, and follows none.

    background: owns what is told and renewed meanwhile.
    """

    neighbours: Neighbours
    holders: Holders
    answers: Answers
    leases: Leases | None
    background: Background


class DigestFlight:
    """A Flight. `others` None: there is the shelf alone. Make it, use it, `leave` it.

    asker: who waits for it. Only a client's may follow; a node's asks no node, a region's those who have it stored.
    """

    def __init__(
        self,
        digest: Digest,
        repository: Repository,
        others: Others | None,
        shelf: NearSource | None,
        asker: Asker,
    ) -> None:
        self.lost = False
        self.following = False
        self.more = False
        self.unheard = ""
        self._digest = digest
        self._repository = repository
        self._others = others
        self._shelf = shelf
        self._asker = asker
        self._placed = False
        self._ours: Lease | None = None
        self._leader: Lease | None = None
        self._gone: Lease | None = None
        self._fruitless = 0
        self._holders: Sequence[str] = ()
        self._searched = False
        self._asked: set[str] = set()
        self._given: NearSource | None = None
        self._left = asyncio.Event()
        self._has_it = False

    async def next(self) -> NearSource | None:
        """Return who is to be asked now, None for the upstream. Raises GatewayTimeout (see `near.Flight`)."""
        self.following = False
        if not self._placed or self.lost:
            await self._take_place()
        self._given = await self._choose()
        return self._given

    def last_resort(self) -> bool:
        """See `near.Flight`: all who are near are asked before the upstream."""
        return False

    @property
    def shared(self) -> bool:
        """See `near.Flight`."""
        return self._given is not None

    def failed(self, source: NearSource, error: RegistryError, received: int) -> None:
        """See `near.Flight`. Whoever gave something worth it is asked again, a few times."""
        if source is not self._given:
            return
        useful = received >= PROGRESS
        if self._leader is not None:
            # Who has just taken a lease over may for a moment still count as following, and refuse (GatewayTimeout).
            # Who does not believe us is neither followed nor robbed of the lease: both would lose it in turn.
            self._fruitless = FRUITLESS if isinstance(error, Refused) else 0 if useful else self._fruitless + 1
            self._gone, self._leader, self._placed = self._leader, None, False
        elif useful:
            self._asked.discard(source.name)

    def stored(self) -> None:
        """See `near.Flight`."""
        self._has_it = True

    def leave(self) -> None:
        """End it: give the lease back, tell that this node has it. What Redis is told waits for nobody."""
        self._left.set()
        others = self._others
        if others is not None and others.leases is not None and (self._ours is not None or self._has_it):
            others.background.create_task(self._tell(others.leases, self._ours), name=f"leave {self._digest}")
        self._ours = None

    async def _choose(self) -> NearSource | None:
        others = self._others
        if self._leader is not None and others is not None:
            if self._asker is not Asker.CLIENT:
                raise GatewayTimeout(
                    f"another node leads the download of {self._digest}: ask that one, or the upstream"
                )
            still = partial(_still_leads, others.leases, self._leader)
            source = self._neighbour(others.neighbours, self._leader.node, held=False, still=still)
            if source is not None:
                self.following = True
                return source
            self._leader = None
        if others is not None and self._asker is not Asker.NODE:
            if not self._holders and not self._searched:
                self._searched = True
                self._holders = await others.holders.ask(self._repository, self._digest)
            for url in self._holders:
                source = self._neighbour(others.neighbours, url, held=True, still=None)
                if source is not None and source.name not in self._asked:
                    self._asked.add(source.name)
                    return source
        if self._shelf is not None and self._shelf.name not in self._asked:
            self._asked.add(self._shelf.name)
            return self._shelf
        return None

    @staticmethod
    def _neighbour(
        neighbours: Neighbours, url: str, *, held: bool, still: Callable[[], Awaitable[bool]] | None
    ) -> NearSource | None:
        try:
            return neighbours.at(url, held=held, still=still)
        except ValueError:
            _log.warning("what Redis calls a node is none", extra={"url": url})
            return None

    async def _take_place(self) -> None:
        self.lost, self._placed = False, True
        gone, self._gone = self._gone, None
        others = self._others
        if others is None or others.leases is None or self._fruitless >= FRUITLESS:
            return
        alive = False
        if gone is not None:
            await asyncio.sleep(PAUSE_SECONDS * self._fruitless)
            alive = await others.neighbours.alive(gone.node)
        try:
            instead_of = None if alive else gone
            standing = await others.leases.acquire(str(self._digest), instead_of=instead_of)
            self._leader = standing.theirs
            if standing.ours is not None:
                self._ours = standing.ours
                renewing = self._renew(others.leases, standing.ours)
                others.background.create_task(renewing, name=f"lead {self._digest}")
            self._holders = await others.holders.present(standing.holders)
        except LinkDown:
            # Redis knows no more than we do: who led and is alive goes on leading.
            self._leader = gone if alive else None
            self._placed = self._leader is not None  # another look at Redis, should the upstream break off

    async def _renew(self, leases: Leases, lease: Lease) -> None:
        """Keep the lease until the flight is left, or another has it."""
        while self._ours is lease:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._left.wait()
                return
            except TimeoutError:
                pass
            try:
                renewed = await leases.beat(lease)
                if self._ours is not lease:
                    await leases.release(lease, holds=False)  # it was left meanwhile: the beat may have put it back
                elif not renewed:
                    _log.warning("another node leads a download that this one led", extra={"digest": str(self._digest)})
                    self._ours, self.lost = None, True
            except LinkDown:
                continue

    async def _tell(self, leases: Leases, lease: Lease | None) -> None:
        try:
            if lease is not None:
                await leases.release(lease, holds=self._has_it, said=None)
            else:
                await leases.hold(str(self._digest))
        except LinkDown:
            return


async def _still_leads(leases: Leases | None, leader: Lease) -> bool:
    """Tell whether a leader that gives nothing has its lease; where Redis does not answer, a ping must do."""
    try:
        return leases is not None and await leases.look(leader.key) == leader
    except LinkDown:
        return True
