"""Which repositories of a catalog somebody may hear of, by ids: kept in memory, read on as new ones appear."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Set as AbstractSet

from proxy.oci.names import Repository
from proxy.store.ranges import REPOSITORIES

_PAGE = 10_000


class Visible:
    """The repositories that `admits` lets through. For several readers' threads at once.

    State: their ids, and up to which id the repositories were looked at. Repositories never go away.
    """

    def __init__(self, admits: Callable[[Repository], bool]) -> None:
        self._admits = admits
        self._ids: set[int] = set()
        self._last = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self, connection: sqlite3.Connection) -> AbstractSet[int]:
        """Return the ids among all that the connection's transaction sees: what it reads next has no others."""
        with self._lock:
            while True:
                rows = connection.execute(REPOSITORIES, (self._last, _PAGE)).fetchall()
                for number, upstream, path in rows:
                    if self._admits(Repository(upstream, path)):
                        self._ids.add(number)
                    self._last = number
                if len(rows) < _PAGE:
                    return self._ids
