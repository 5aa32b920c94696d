"""A bounded cache in front of the catalog's readers, for one event loop. No I/O.

A value is read in a thread while the writer may be changing it. So a load takes a ticket: whatever forgets the
key meanwhile tears the ticket up, and the value that was read is used once but not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most `limit` values, the least recently used go first. State: the values, and the newest ticket per key."""

    __slots__ = ("_limit", "_tickets", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[K, V] = OrderedDict()
        self._tickets: dict[K, object] = {}

    def get(self, key: K) -> V | None:
        """Return the value, now the most recently used, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def replace(self, key: K, value: V) -> None:
        """Replace a value if there is one."""
        if key in self._values:
            self._values[key] = value

    def begin(self, key: K) -> object:
        """Return a ticket for loading `key`; give it back to `end`, whatever happens."""
        ticket = self._tickets[key] = object()
        return ticket

    def end(self, key: K, ticket: object, value: V | None) -> None:
        """Keep what was loaded, unless it is None or the key was forgotten since `begin`."""
        if self._tickets.get(key) is not ticket:
            return
        del self._tickets[key]
        if value is not None:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._limit:
                self._values.popitem(last=False)

    def forget(self, key: K) -> None:
        """Drop the value, and what is being loaded for it now."""
        self._values.pop(key, None)
        self._tickets.pop(key, None)

    def cancel(self, key: K) -> None:
        """Do not keep what is being loaded for the key now; a value that is there stays."""
        self._tickets.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)
