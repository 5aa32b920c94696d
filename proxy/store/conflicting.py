"""The list of true conflicts: two regions moved a tag without knowing of each other. When that is so: `tagstate`."""

from __future__ import annotations

import sqlite3

from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store.exchanged import Past
from proxy.store.records import Conflict
from proxy.store.tagstate import State
from proxy.store.writer import Transaction

MOST = 10_000
KEPT_SECONDS = 90 * 86400.0

LIST = """
    SELECT upstream, path, name, digest, version, origin, winner, winner_origin, found_at
    FROM conflict INDEXED BY conflict_found CROSS JOIN repository ON repository.id = conflict.repository
    ORDER BY found_at DESC LIMIT ?
"""
_NOTE = "INSERT OR IGNORE INTO conflict VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
OLD = "DELETE FROM conflict WHERE found_at < ?"
TOO_MANY = """
    DELETE FROM conflict WHERE (repository, name, digest, version) IN (
        SELECT repository, name, digest, version FROM conflict INDEXED BY conflict_found
        ORDER BY found_at DESC LIMIT -1 OFFSET ?)
"""
STATEMENTS = (LIST, OLD, TOO_MANY)


def note(transaction: Transaction, repository: int, name: str, winner: Past, losers: State, now: float) -> None:
    """Write down who lost; once per loser."""
    transaction.connection.executemany(
        _NOTE,
        [
            (repository, name, lost.digest or "", lost.version, lost.origin, winner.digest or "", winner.origin, now)
            for lost in losers
        ],
    )


def tidy(transaction: Transaction, now: float) -> None:
    """Forget what was found KEPT_SECONDS ago, and what is more than the MOST newest."""
    transaction.connection.execute(OLD, (now - KEPT_SECONDS,))
    transaction.connection.execute(TOO_MANY, (MOST,))


def read_conflicts(connection: sqlite3.Connection, limit: int) -> list[Conflict]:
    """Return up to `limit` conflicts, the newest first."""
    return [
        Conflict(
            Repository(upstream, path),
            Tag(name),
            Digest(digest) if digest else None,
            version,
            origin,
            Digest(winner) if winner else None,
            winner_origin,
            found_at,
        )
        for upstream, path, name, digest, version, origin, winner, winner_origin, found_at in connection.execute(
            LIST, (limit,)
        )
    ]
