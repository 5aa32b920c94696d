"""Taking over what the other nodes say about their catalogs: one task per node asks, merges, and waits for more.

    catch up, one node after another → ask and wait, all at once → a failure: pause, and catch up again

Whoever has nothing takes everything from the first node that answers, and learns with it how far that one has read
the others: of those it then asks for the rest alone. What was never read is copied in the order of its keys, then the
feed is read from where it stood as the copy began. Positions are kept in the catalog, in the transaction that merges
the records, so that what is cut short goes on where it was; the place of a copy is kept in memory, and a process that
dies begins it again, passing over what it has. Pages are merged by short steps between which other writers have their
turn. No bytes and no manifests are fetched: that is done when somebody asks for them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from metrics.events import Emit, FeedFailed, FeedStanding, RecordsMerged, ignore
from proxy.oci.errors import BadContent, RegistryError
from proxy.oci.names import Repository
from proxy.store.catalog import Catalog
from proxy.store.errors import StoreError
from proxy.store.exchanged import AHEAD_SECONDS, Page
from proxy.store.feed import look_back, note, read_cursors
from sync.records import Question, decode

WAIT_SECONDS = 25.0
GRACE_SECONDS = 10.0
MOST_RESTARTS = 3
LOOK_SECONDS = 30.0
PAUSE_SECONDS = (0.5, 30.0)
AGAIN_SECONDS = 900.0
"""After so long, what was refused for its clock is read again."""

_log = logging.getLogger(__name__)

Fetch = Callable[[str, str, float], Awaitable[bytes]]


class Changed(Protocol):
    """Wakes when `nodes` would say something else."""

    async def wait(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy under way: what to ask next, and the least `seq` that was refused in it."""

    question: Question
    refused_from: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far another node's records are here.

    records: at most how many it has that were not merged here; None: not known yet. since: the event loop's time when
    all was here last, or when this node was first met. error: why it could not be asked the last time. refused: how
    many records were, for their clock, since all was read from the place that the catalog keeps.
    """

    records: int | None
    since: float
    error: str | None = None
    refused: int = 0


class SameCatalog(BadContent):
    """Two nodes have one catalog: the data folder was copied, or a node was told that its neighbour is itself."""


def reason_of(error: Exception) -> str:
    """Return why an exchange failed, for metrics: same-catalog | unreadable | store | unreachable | other."""
    match error:
        case SameCatalog():
            return "same-catalog"
        case BadContent():
            return "unreadable"
        case StoreError():
            return "store"
        case RegistryError() | OSError():
            return "unreachable"
    return "other"


class Exchange:
    """See the module; `run` it in the one process that owns the data folder.

    nodes: the URLs of the other nodes, as they stand now. fetch: asks a node (by URL) for a path with its query, gives
    it so many seconds, and returns the body; raises RegistryError, OSError or TimeoutError.
    State: the tasks of `run`, one standing per node, the copies that were cut short, and who may catch up now.
    """

    def __init__(
        self,
        catalog: Catalog,
        nodes: Callable[[], Sequence[str]],
        changed: Changed,
        fetch: Fetch,
        emit: Emit = ignore,
    ) -> None:
        self._catalog = catalog
        self._nodes = nodes
        self._changed = changed
        self._fetch = fetch
        self._emit = emit
        self._standings: dict[str, Standing] = {}
        self._copies: dict[str, _Copy] = {}
        self._catching_up = asyncio.Lock()

    @property
    def standings(self) -> Mapping[str, Standing]:
        """How far the records of each node are here."""
        return self._standings

    @property
    def behind(self) -> Mapping[str, float]:
        """Seconds for which not all records of a node have been here; 0: they are."""
        now = asyncio.get_running_loop().time()
        return {
            node: now - standing.since if standing.records != 0 or standing.error else 0.0
            for node, standing in self._standings.items()
        }

    async def run(self) -> None:
        """Follow the nodes there are, until cancelled."""
        async with asyncio.TaskGroup() as group:
            tasks: dict[str, asyncio.Task[None]] = {}
            while True:
                wanted = dict.fromkeys(self._nodes())
                for node in tasks.keys() - wanted.keys():
                    tasks.pop(node).cancel()
                    self._standings.pop(node, None)
                    self._copies.pop(node, None)
                for node in wanted:
                    if node not in tasks:
                        self._standings[node] = Standing(None, asyncio.get_running_loop().time())
                        tasks[node] = group.create_task(self._follow(node), name=f"exchange {node}")
                self._tell()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()

    async def catch_up(self, node: str) -> Question:
        """Take over all that `node` has now; return what to ask next. A page is merged while the next is fetched.

        Raises what `fetch` does, StoreError, BadContent.
        """
        copy = self._copies.get(node)
        if copy is None:
            self._refuse(node, 0)
        position = await self._position(node, None) if copy is None else copy.question
        asked = asyncio.create_task(self._ask(node, position, 0.0))
        restarts = 0
        try:
            await self._look_back(node, (await asked)[0])
            while True:
                page, repositories = await asked
                question, position = position, position.after(page)
                last = not page.more and not page.restart and page.copy is None
                restarts += page.restart
                if restarts > MOST_RESTARTS or (position == question and not last):
                    raise BadContent(f"node {node} answers about its changes without coming to an end")
                if not last:
                    asked = asyncio.create_task(self._ask(node, position, 0.0))
                refused_from = await self._take(node, page, repositories)
                if page.copy is not None:
                    await self._copied(node, position, refused_from)
                if last:
                    return replace(position, cursors=False)
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def _copied(self, node: str, position: Question, refused_from: int | None) -> None:
        """Keep the place of a copy or, where it is whole, note that all before the first refusal was taken over."""
        known = self._copies.pop(node, None)
        before = None if known is None else known.refused_from
        refused = [seq for seq in (before, refused_from) if seq is not None]
        if position.copy is not None:
            self._copies[node] = _Copy(position, min(refused, default=None))
            return
        reached, now = min([position.seq, *(seq - 1 for seq in refused)]), time.time()
        await self._catalog.write(lambda transaction: note(transaction, position.epoch, node, reached, now))

    async def _follow(self, node: str) -> None:
        failures = 0
        while True:
            try:
                async with self._catching_up:
                    position = await self.catch_up(node)
                failures = 0
                await self._listen(node, position)
            except Exception as error:
                self._failed(node, error, first=failures == 0)
                failures += 1
            least, most = PAUSE_SECONDS
            await asyncio.sleep(min(most, least * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))

    async def _listen(self, node: str, position: Question) -> None:
        """Ask and wait, until the node begins anew, something failed or what was refused is to be read again."""
        loop = asyncio.get_running_loop()
        again = loop.time() + AGAIN_SECONDS
        while not (self._standings[node].refused and loop.time() > again):
            began = loop.time()
            page, repositories = await self._ask(node, position, WAIT_SECONDS)
            if page.restart:
                return
            if page.next > position.seq:
                await self._take(node, page, repositories)
            else:
                self._stand(node, 0)
            position = position.after(page)
            if not page.records and loop.time() - began < PAUSE_SECONDS[0]:
                await asyncio.sleep(PAUSE_SECONDS[0])  # it drains, and lets nobody wait

    async def _position(self, node: str, epoch: str | None) -> Question:
        """Return what to ask next: of what `epoch` is known to have been read or, None, what `node` was read of."""
        cursors = await self._catalog.read(read_cursors)
        for cursor in cursors:
            if cursor.epoch == epoch if epoch is not None else cursor.node == node:
                return Question(cursor.epoch, cursor.seq, cursors=True)
        return Question(epoch or "", 0, cursors=True)

    async def _ask(self, node: str, question: Question, wait: float) -> tuple[Page, list[Repository]]:
        """Ask once; an answer that says `restart` is given with where to begin."""
        body = await self._fetch(node, replace(question, wait=wait).target, wait + GRACE_SECONDS)
        page, repositories = decode(body)
        if page.epoch == self._catalog.epoch:
            raise SameCatalog(
                f"node {node} has the same catalog as this one (epoch {page.epoch}): was the data folder copied? Take "
                "the catalog's files out of one of the two folders and restart it, its blobs are found again"
            )
        if page.restart:
            known = await self._position(node, page.epoch)
            begin = known.seq if known.seq <= page.head and page.epoch != question.epoch else 0
            return Page(page.epoch, page.head, begin, restart=True, cursors=page.cursors), []
        if (page.copy is None) != (question.copy is None):
            raise BadContent(f"node {node} answers something else than it was asked for")
        if page.epoch != question.epoch or (page.copy is None and page.next < question.seq):
            raise BadContent(f"node {node} answers about another catalog, or position, than it was asked for")
        return page, repositories

    async def _take(self, node: str, page: Page, repositories: Sequence[Repository]) -> int | None:
        """Merge a page, step by step; one that says `restart` has nothing to merge. Return the first seq refused."""
        if page.restart:
            self._copies.pop(node, None)
            self._refuse(node, 0)
            return None
        refused_from: int | None = None
        page = self._of_nodes(page)
        start = tags = memberships = pins = refused = 0
        before = self._standings[node].refused
        while True:
            merged = await self._catalog.merge(page, repositories, start, node, hold=before + refused > 0)
            start = merged.done
            tags, memberships, pins = tags + merged.tags, memberships + merged.memberships, pins + merged.pins
            refused += merged.refused
            if merged.refused_from is not None:
                refused_from = min(merged.refused_from, refused_from or merged.refused_from)
            if start >= len(page.records):
                break
        if refused:
            self._refuse(node, before + refused)
        if refused and not before:
            _log.warning(
                "records of node %s are refused: their versions are more than %d s ahead of this node's clock. Set the "
                "clocks of both right; what was refused is read again every %d minutes",
                node,
                AHEAD_SECONDS,
                AGAIN_SECONDS // 60,
            )
        if page.records:
            self._emit(RecordsMerged(tags, memberships, pins, refused))
        self._stand(node, page.head - page.next)
        return refused_from

    def _of_nodes(self, page: Page) -> Page:
        """Leave out the places of catalogs that no node has any more: told on and on they would never be forgotten."""
        return msgspec.structs.replace(page, cursors=[one for one in page.cursors if one.node in self._standings])

    async def _look_back(self, node: str, page: Page) -> None:
        """Look whether a node has read more of this catalog than there is, before anything of it is taken over."""
        if any(cursor.epoch == self._catalog.epoch for cursor in page.cursors) and await self._catalog.write(
            lambda transaction: look_back(transaction, page.cursors)
        ):
            _log.error(
                "node %s has read more of this catalog than there is: an older state of the data folder was put back. "
                "The catalog has a new epoch now, so that the other nodes read all of it anew",
                node,
            )

    def _refuse(self, node: str, refused: int) -> None:
        known = self._standings.get(node) or Standing(None, asyncio.get_running_loop().time())
        self._standings[node] = replace(known, refused=refused)

    def _stand(self, node: str, records: int) -> None:
        known = self._standings[node]
        since = known.since if records else asyncio.get_running_loop().time()
        self._standings[node] = Standing(records, since, None, known.refused)
        if known.error or (known.records == 0) != (records == 0):
            self._tell()

    def _failed(self, node: str, error: Exception, *, first: bool) -> None:
        known = self._standings.get(node)
        if known is not None:
            self._standings[node] = replace(known, error=str(error) or type(error).__name__)
        if not isinstance(error, RegistryError | OSError | TimeoutError):
            _log.exception("the exchange with node %s met what it does not know", node)
        elif first:
            _log.warning("the records of node %s cannot be taken over at the moment: %s", node, error)
        self._emit(FeedFailed(reason_of(error)))
        self._tell()

    def _tell(self) -> None:
        self._emit(FeedStanding(len(self._standings), sum(seconds == 0 for seconds in self.behind.values())))
