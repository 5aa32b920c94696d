"""The one thread that writes the catalog: a bounded queue, and one transaction for all that waits.

A commit costs a sync of the disk, whatever it holds, so operations that arrive while one is under way share the
next. Each runs in a savepoint of its own, so that one that fails harms no other; one that is alone needs none, and
SQLite then keeps no copy of every page that it touches. Before a caller hears of its success, the caches in front of
the readers have forgotten what it changed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from proxy.oci.names import Repository
from proxy.store.errors import CatalogDamaged, CatalogError, StoreClosed
from proxy.store.schema import new_epoch

QUEUE = 1024
BATCH = 256
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MAX_ENTRIES = 4096

T = TypeVar("T")
Operation = Callable[["Transaction"], T]


class Transaction:
    """What an operation may use: the connection, the counters, and `on_commit`. Belongs to the writer's thread.

    region: whose observations are written. mesh: the key of the hashes that regions compare (see `roots`).
    """

    def __init__(self, connection: sqlite3.Connection, region: str = "local") -> None:
        self.connection = connection
        self.region = region
        self.begin()
        self._repositories: dict[Repository, int] = {}
        self._names: dict[int, tuple[str, str]] = {}
        self._callbacks: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Read the counters: another process may have written since the last transaction."""
        meta = dict(self.connection.execute("SELECT key, value FROM meta").fetchall())
        self.epoch = str(meta["epoch"])
        self.mesh = bytes(meta["mesh"])
        self._seq = int(meta["seq"])
        self._clock = int(meta["clock"])
        self._saved = (self._seq, self._clock)
        self.published = False

    def stamp(self) -> int:
        """Return the next `seq`."""
        self._seq += 1
        return self._seq

    def publish(self) -> int:
        """Return the next `seq`, for a record that other catalogs are told of."""
        self.published = True
        return self.stamp()

    @property
    def seq(self) -> int:
        """The last `seq` that was given."""
        return self._seq

    def renew(self) -> None:
        """Draw another epoch: whoever has read this catalog reads all of it anew."""
        self.epoch = new_epoch()
        self.connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (self.epoch,))

    def learn(self, version: int) -> None:
        """Draw only versions greater than this one, which another catalog has drawn."""
        self._clock = max(self._clock, version)

    def version(self, now: float) -> int:
        """Return the next hybrid logical clock: milliseconds since the epoch << 16, or one more than the last."""
        self._clock = max(int(now * 1000) << 16, self._clock + 1)
        return self._clock

    def repository(self, repository: Repository) -> int:
        """Return the row id of a repository, making its row when it is new."""
        known = self._repositories.get(repository)
        if known is not None:
            return known
        found = self.connection.execute(
            "SELECT id FROM repository WHERE upstream = ? AND path = ?", repository
        ).fetchone()
        if found is None:
            cursor = self.connection.execute("INSERT INTO repository (upstream, path) VALUES (?, ?)", repository)
            found = (cursor.lastrowid,)
        if len(self._repositories) >= _MAX_ENTRIES:
            self._repositories.clear()
        self._repositories[repository] = int(found[0])
        return int(found[0])

    def name(self, row: int) -> tuple[str, str]:
        """Return upstream and path of the repository with this row id."""
        known = self._names.get(row)
        if known is None:
            upstream, path = self.connection.execute(
                "SELECT upstream, path FROM repository WHERE id = ?", (row,)
            ).fetchone()
            if len(self._names) >= _MAX_ENTRIES:
                self._names.clear()
            known = self._names[row] = upstream, path
        return known

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the event loop once this is committed, before the caller hears of it."""
        self._callbacks.append(callback)

    def rolled_back(self, mark: int = 0) -> None:
        """Forget what did not come to pass since `mark`."""
        self._repositories.clear()
        self._names.clear()
        self._saved = (-1, -1)
        del self._callbacks[mark:]

    def mark(self) -> int:
        """Return what `rolled_back` takes to come back to here."""
        return len(self._callbacks)

    def save(self) -> None:
        """Write the counters, as the last thing of a transaction."""
        if self._saved != (self._seq, self._clock):
            self.connection.executemany(
                "UPDATE meta SET value = ? WHERE key = ?", [(self._seq, "seq"), (self._clock, "clock")]
            )
            self._saved = (self._seq, self._clock)

    def take_callbacks(self) -> list[Callable[[], None]]:
        """Return and forget the callbacks."""
        taken, self._callbacks = self._callbacks, []
        return taken


_Job = tuple[Operation[Any], "asyncio.Future[Any]"]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Writer:
    """Owns the writing connection. Make it in the event loop that uses it, `start` it, `aclose` it.

    published: called in the event loop after every commit of what other catalogs are told of.
    """

    def __init__(self, connection: sqlite3.Connection, published: Callable[[], None], region: str) -> None:
        self.region = region
        self._published = published
        self._transaction = Transaction(connection, region)
        self._connection = connection
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._room = asyncio.Semaphore(QUEUE)
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="catalog-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def epoch(self) -> str:
        """What names this catalog: drawn at random when it was made."""
        return self._transaction.epoch

    @property
    def mesh(self) -> bytes:
        """The mesh key, as of the last transaction."""
        return self._transaction.mesh

    async def write(self, operation: Operation[T]) -> T:
        """Run `operation` and return its result once it is durable. Whoever is cancelled here has still written.

        Raises:
            CatalogError: SQLite refused. Also whatever the operation raises.
        """
        async with self._room:
            if self._closed:
                raise StoreClosed("the catalog is closed: the mirror is shutting down")
            future: asyncio.Future[T] = self._loop.create_future()
            self._queue.put((operation, future))
            return await future

    async def aclose(self) -> None:
        """Write what was asked for, then close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            jobs: list[_Job] = []
            job = self._queue.get()
            while True:
                if job is None:
                    open_for_more = False
                    break
                jobs.append(job)
                if len(jobs) >= BATCH:
                    break
                try:
                    job = self._queue.get_nowait()
                except Empty:
                    break
            if jobs:
                callbacks, outcomes = self._transact(jobs)
                self._loop.call_soon_threadsafe(_settle, callbacks, outcomes)
        self._connection.close()

    def _transact(self, jobs: list[_Job]) -> tuple[list[Callable[[], None]], list[_Outcome]]:
        transaction, connection = self._transaction, self._connection
        outcomes: list[_Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            transaction.begin()
            if len(jobs) == 1:
                ((alone, waiting),) = jobs
                outcomes.append((waiting, alone(transaction), None))
            else:
                outcomes += [(future, *self._attempt(operation)) for operation, future in jobs]
            transaction.save()
            connection.execute("COMMIT")
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            transaction.rolled_back()
            failure = explain(error)
            return [], [(future, None, failure) for _, future in jobs]
        if transaction.published:
            transaction.on_commit(self._published)
        return transaction.take_callbacks(), outcomes

    def _attempt(self, operation: Operation[Any]) -> tuple[Any, BaseException | None]:
        self._connection.execute("SAVEPOINT operation")
        mark = self._transaction.mark()
        try:
            result = operation(self._transaction)
        except Exception as error:
            self._transaction.rolled_back(mark)
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO operation")
            self._connection.execute("RELEASE operation")
            return None, explain(error)
        self._connection.execute("RELEASE operation")
        return result, None


def _settle(callbacks: list[Callable[[], None]], outcomes: list[_Outcome]) -> None:
    for callback in callbacks:
        callback()
    for future, result, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def explain(error: Exception) -> Exception:
    """Return what a caller is told instead of SQLite's own error; other errors as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
        return CatalogDamaged(
            f"the catalog is damaged: {error}. Restart the mirror: the last good copy takes its place then, and stored "
            "blobs are taken in again"
        )
    return CatalogError(f"the catalog cannot be used: {error}. Check free space and permissions of the data folder")
