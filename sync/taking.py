"""Keeping what a peer says: by steps of the catalog's writer, and anew under another key. Whom to ask is `following`'s.

Nothing here asks the peer. Whatever is cut short is done again from the beginning, and finds what was done.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from proxy.oci.names import Repository
from proxy.regions.scope import Scope
from proxy.store import shadow
from proxy.store.catalog import Catalog
from proxy.store.exchanged import AHEAD_SECONDS
from proxy.store.ranges import OWN, Interval, Sum, read_fingerprint
from proxy.store.remote import RootChange
from proxy.store.roots import Marks
from proxy.store.visible import Visible

_log = logging.getLogger(__name__)


class Taker:
    """Keeps what the peer `name` says. news: called when more rows wait. State: whether its clock was told about."""

    def __init__(self, catalog: Catalog, name: str, scope: Scope, news: Callable[[], None]) -> None:
        self._catalog = catalog
        self._name = name
        self._scope = scope
        self._news = news
        self._told_clock = False

    async def peer(self) -> shadow.Peer:
        """Return what is known of the peer."""
        return await self._catalog.write(lambda transaction: shadow.introduce(transaction, self._name))

    async def fingerprint(self, peer: shadow.Peer) -> Sum:
        """Return the sum over all that the peer said."""
        return await self._catalog.read(lambda connection: read_fingerprint(connection, peer.id, None))

    async def take(
        self,
        peer: shadow.Peer,
        marks: Marks,
        records: Sequence[tuple[Repository, RootChange]],
        position: tuple[str, int] | None,
    ) -> None:
        """Take over records; with the last one the peer's feed was read to `position`."""
        done = ahead = news = 0
        while True:
            step = partial(shadow.merge, records=records, start=done, position=position, now=time.time())
            taken = await self._catalog.write(partial(step, peer=peer.id, marks=marks))
            done, ahead, news = taken.done, ahead + taken.ahead, news + taken.news
            if done >= len(records):
                break
        if ahead and not self._told_clock:
            self._told_clock = True
            _log.warning(
                "records of region %s wait: their versions are more than %d s ahead of this node's clock. Set the "
                "clocks of both regions right",
                self._name,
                AHEAD_SECONDS,
            )
        if news:
            self._news()

    async def drop(self, peer: shadow.Peer, places: Sequence[int], intervals: Sequence[Interval]) -> None:
        """Forget what the peer has no more."""
        for begin in range(0, len(places), shadow.DROP_ROWS):
            some = places[begin : begin + shadow.DROP_ROWS]
            await self._catalog.write(partial(shadow.drop, peer=peer.id, places=some))
        for interval in intervals:
            while await self._catalog.write(partial(shadow.drop_range, peer=peer.id, interval=interval)):
                pass

    async def note(self, peer: shadow.Peer, epoch: str, seq: int) -> None:
        """Note that up to `seq` all of the catalog `epoch` is here."""
        now = time.time()
        await self._catalog.write(lambda transaction: shadow.note(transaction, peer.id, epoch, seq, now))

    async def forget_position(self, peer: shadow.Peer) -> None:
        """Have the peer asked as one that was never read."""
        await self._catalog.write(partial(shadow.forget_mesh, peer=peer.id))

    async def begin_anew(self, peer: shadow.Peer, theirs: int, mesh: bytes) -> None:
        """Keep what the peer says under another key. What waits goes on waiting.

        theirs: how many records it has. It is supposed to have what we have, where that is about as much.
        """
        marks = Marks(mesh)
        await self.forget_position(peer)
        while await self._catalog.write(partial(shadow.clear, peer=peer.id)):
            pass
        ours = await self._catalog.read(partial(_in_scope, scope=self._scope))
        if theirs / 2 <= ours <= theirs * 2:
            await self._suppose(peer, marks)
        begin: int | None = shadow.BEGIN
        while begin is not None:
            begin = await self._catalog.write(partial(shadow.move_waiting, peer=peer.id, marks=marks, begin=begin))
        await self._catalog.write(partial(shadow.learn_mesh, peer=peer.id, mesh=mesh))

    async def _suppose(self, peer: shadow.Peer, marks: Marks) -> None:
        begin: int | None = shadow.BEGIN
        while begin is not None:
            guesses, begin = await self._catalog.read(partial(shadow.read_guesses, begin=begin, marks=marks))
            guesses = [guess for guess in guesses if self._scope.admits(guess[2])]
            await self._catalog.write(partial(shadow.seed, peer=peer.id, guesses=guesses))


async def forget_others(catalog: Catalog, names: Collection[str]) -> None:
    """Forget the peers that are none of `names` any more. What came from them stays."""
    for name in await catalog.read(shadow.read_names):
        if name not in names:
            while await catalog.write(partial(shadow.forget, name=name)):
                pass
            _log.info("what region %s said is forgotten: it is no peer any more, what came from it stays", name)


def _in_scope(connection: sqlite3.Connection, scope: Scope) -> int:
    ids = None if scope.everything else Visible(scope.admits).ids(connection)
    return read_fingerprint(connection, OWN, ids).records
