"""Answering other regions: which roots changed, and how ranges of them compare. Who may ask is judged before.

What is told lies within the scope that is given with each question: the grant of who asks. Neither the time nor the
memory of an answer grows with the catalog: a question is answered by reads of bounded length, and told where it ended.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TypeVar

from aiohttp import web

from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError
from proxy.store.feed import POSITION
from proxy.store.ranges import OWN, Interval, RootPage, Sum, read_difference, read_fingerprint, read_roots, split, sums
from proxy.store.roots import REKEYING, read_mesh
from proxy.store.visible import Visible
from sync.feed import Patience
from sync.packing import pack_places, pack_sums, unpack_marks
from sync.regional_records import (
    JSON,
    MOST_RECORDS,
    MSGPACK,
    PROTOCOL,
    RangesQuestion,
    RangesTold,
    RootsQuestion,
    RootsTold,
    decode_question,
    encode,
    mesh_name,
)

MOST_SCOPES = 64
MOST_IDS = 1_000_000
"""So many ids of repositories are kept over all scopes that were asked for."""
MOST_QUESTION = 256 * 1024
HIDDEN_PAGES = 8
"""So many pages of nothing but hidden records are passed over in one read."""
T = TypeVar("T")

_REKEYING = "SELECT 1 FROM meta WHERE key = ?"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the catalog says of itself in a transaction. comparable: its marks are all under its present key."""

    epoch: str
    head: int
    mesh: bytes
    comparable: bool

    @classmethod
    def of(cls, connection: sqlite3.Connection) -> _Snapshot:
        epoch, head = connection.execute(POSITION).fetchone()
        rekeying = connection.execute(_REKEYING, (REKEYING,)).fetchone()
        return cls(epoch, head, read_mesh(connection), rekeying is None)


@dataclass(slots=True)
class _Seen:
    """One scope: the repositories that it holds (None: all), and its fingerprint with what that is of."""

    visible: Visible | None
    _fingerprint: tuple[_Snapshot, Sum] | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        return 0 if self.visible is None else len(self.visible)

    def ids(self, connection: sqlite3.Connection) -> AbstractSet[int] | None:
        """Return the ids of the repositories to a transaction; None: all."""
        return None if self.visible is None else self.visible.ids(connection)

    def fingerprint(
        self, connection: sqlite3.Connection, ids: AbstractSet[int] | None, snapshot: _Snapshot
    ) -> Sum | None:
        """Return the fingerprint, which is summed once per change of the catalog; None: there is none now."""
        if not snapshot.comparable:
            return None
        kept = self._fingerprint
        if kept is None or kept[0] != snapshot:
            kept = self._fingerprint = snapshot, read_fingerprint(connection, OWN, ids)
        return kept[1]


class _Scopes:
    """State: what is kept of the scopes that were asked for last."""

    def __init__(self) -> None:
        self._everything = _Seen(None)
        self._kept: OrderedDict[Scope, _Seen] = OrderedDict()

    def of(self, scope: Scope) -> _Seen:
        """Return what is kept of a scope. Those asked for longest ago go, but for this one."""
        if scope.everything:
            return self._everything
        seen = self._kept.setdefault(scope, _Seen(Visible(scope.admits)))
        self._kept.move_to_end(scope)
        while len(self._kept) > 1 and (
            len(self._kept) > MOST_SCOPES or sum(one.size for one in self._kept.values()) > MOST_IDS
        ):
            self._kept.popitem(last=False)
        return seen


class RegionChanges:
    """Answers CHANGES. State: the scopes of those who ask."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._scopes = _Scopes()
        self._patience = Patience(catalog)

    def end(self) -> None:
        """Let nobody wait any more, so that a server can drain: those who do are answered that nothing is new."""
        self._patience.end()

    async def __call__(self, request: web.BaseRequest, scope: Scope) -> web.Response:
        try:
            question = RootsQuestion.parse(request.rel_url.raw_query_string)
        except ValueError as error:
            return web.Response(status=400, text=f"changes: {error}; ask ?since=<epoch>:<seq>&scope=<glob>&wait=<s>\n")
        try:
            told = await self._answer(question, scope.within(question.scope))
        except StoreError as error:
            return web.Response(status=503, text=f"changes: {error}\n")
        return _response(request, told)

    async def _answer(self, question: RootsQuestion, scope: Scope) -> RootsTold:
        loop = asyncio.get_running_loop()
        until = loop.time() + question.wait
        while True:
            number = self._catalog.published.number
            left = until - loop.time()
            waits = left > 0 and not self._patience.ended
            told = await self._read(question, scope, waits=waits)
            if told.records or told.restart or not waits:
                return told
            question = replace(question, positions={told.epoch: told.next})
            if not told.more:
                await self._patience.wait(number, left)

    async def _read(self, question: RootsQuestion, scope: Scope, *, waits: bool) -> RootsTold:
        """Read on. `waits`: an answer that would tell nothing is not given, so that it needs no fingerprint."""
        seen = self._scopes.of(scope)

        def read(connection: sqlite3.Connection) -> RootsTold:
            ids, snapshot = seen.ids(connection), _Snapshot.of(connection)
            page = _visible_page(connection, question, ids)
            idle = waits and not (page.records or page.restart)
            found = None if page.more or idle else seen.fingerprint(connection, ids, snapshot)
            return RootsTold(
                PROTOCOL,
                self._catalog.region,
                page.epoch,
                page.head,
                page.next,
                mesh_name(snapshot.mesh),
                more=page.more,
                restart=page.restart,
                fingerprint=found,
                mesh=snapshot.mesh if page.restart else None,
                repositories=page.repositories,
                records=page.records,
            )

        return await self._catalog.read(lambda connection: _in_one(connection, read))


class Ranges:
    """Answers RANGES. State: the scopes of those who ask."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._scopes = _Scopes()

    async def __call__(self, request: web.BaseRequest, scope: Scope) -> web.Response:
        if (request.content_length or 0) > MOST_QUESTION:
            return web.Response(status=413, text=f"ranges: a question is at most {MOST_QUESTION} bytes\n")
        try:
            question, asked = decode_question(await request.read())
        except ValueError as error:
            return web.Response(status=400, text=f"ranges: {error}; bring both regions up to date\n")
        try:
            told = await self._answer(question, scope.within(asked))
        except StoreError as error:
            return web.Response(status=503, text=f"ranges: {error}\n")
        if told is None:
            return web.Response(status=503, text="ranges: this region's mesh key has changed: ask again in a minute\n")
        return _response(request, told)

    async def _answer(self, question: RangesQuestion, scope: Scope) -> RangesTold | None:
        """Compare; None while that cannot be. `head` is of before all that is read."""
        seen = self._scopes.of(scope)

        def begin(connection: sqlite3.Connection) -> tuple[_Snapshot, AbstractSet[int] | None]:
            return _Snapshot.of(connection), seen.ids(connection)

        snapshot, ids = await self._catalog.read(lambda connection: _in_one(connection, begin))
        if not snapshot.comparable:
            return None
        ranges = [interval for prefix in question.deeper for interval in split(prefix, question.levels)]
        found = await sums(self._catalog, OWN, ranges, ids)
        size = len(ranges) // max(1, len(question.deeper))
        asked = [(Interval(low, high), unpack_marks(packed)) for low, high, packed in question.compare]
        differing = await self._catalog.read(
            lambda connection: _in_one(connection, lambda inner: read_difference(inner, asked, ids, MOST_RECORDS))
        )
        return RangesTold(
            PROTOCOL,
            self._catalog.region,
            snapshot.epoch,
            snapshot.head,
            mesh_name(snapshot.mesh),
            sums=[pack_sums(found[number : number + size]) for number in range(0, len(found), size or 1)],
            done=differing.done,
            upto=differing.upto,
            gone=pack_places(differing.gone),
            repositories=differing.repositories,
            records=differing.records,
        )


def _visible_page(connection: sqlite3.Connection, question: RootsQuestion, ids: AbstractSet[int] | None) -> RootPage:
    page = read_roots(connection, question.positions, ids, MOST_RECORDS)
    for _ in range(HIDDEN_PAGES):
        if page.records or not page.more:
            break
        page = read_roots(connection, {page.epoch: page.next}, ids, MOST_RECORDS)
    return page


def _in_one(connection: sqlite3.Connection, read: Callable[[sqlite3.Connection], T]) -> T:
    """Read in one snapshot."""
    connection.execute("BEGIN")
    try:
        return read(connection)
    finally:
        connection.execute("COMMIT")


def _response(request: web.BaseRequest, told: RootsTold | RangesTold) -> web.Response:
    accepted = JSON if request.headers.get("Accept", "").strip() == JSON else MSGPACK
    return web.Response(body=encode(told, accepted), content_type=accepted)
