"""The rows of tags: a state (see `tagstate`) read and written. What it ought to be is decided by who calls."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from proxy.store import roots
from proxy.store.exchanged import Past
from proxy.store.tagstate import State, read_others, write_others
from proxy.store.writer import Transaction

KNOWN = """
    SELECT digest, generation, version, base, origin, media_type, size, observed_at, others, checked_at
    FROM tag WHERE repository = ? AND name = ?
"""
STATEMENTS = (KNOWN,)

_HEARD = """
    INSERT INTO tag (repository, name, digest, generation, version, base, origin, media_type, size, observed_at, others,
        checked_at, seq)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        pending = CASE WHEN digest IS excluded.digest THEN pending END,
        pending_at = CASE WHEN digest IS excluded.digest THEN pending_at END,
        digest = excluded.digest, generation = excluded.generation, version = excluded.version, base = excluded.base,
        origin = excluded.origin, media_type = excluded.media_type, size = excluded.size,
        observed_at = excluded.observed_at, others = excluded.others, checked_at = excluded.checked_at,
        seq = excluded.seq
"""
_SEEN = f"{_HEARD}, denied_at = NULL"


@dataclass(frozen=True, slots=True)
class Known:
    """What a catalog knows of a tag. checked_at: when the present entry was last confirmed."""

    state: State
    checked_at: float


def read(connection: sqlite3.Connection, repository: int, name: str) -> Known | None:
    """Return what is known of a tag, also when it was removed."""
    found = connection.execute(KNOWN, (repository, name)).fetchone()
    return None if found is None else Known((Past(*found[:8]), *read_others(found[8])), found[9])


def put_seen(transaction: Transaction, repository: int, name: str, state: State, now: float) -> None:
    """Write what this node has seen or decided; what its upstream refused before is over."""
    _put(transaction, _SEEN, repository, name, state, now)


def put_heard(transaction: Transaction, repository: int, name: str, state: State, checked_at: float) -> None:
    """Write what another catalog made known."""
    _put(transaction, _HEARD, repository, name, state, checked_at)


def tell_again(transaction: Transaction, repository: int, name: str) -> None:
    """Let others hear of a tag again that has not changed."""
    transaction.connection.execute(
        "UPDATE tag SET seq = ? WHERE repository = ? AND name = ?", (transaction.publish(), repository, name)
    )


def _put(transaction: Transaction, statement: str, repository: int, name: str, state: State, checked_at: float) -> None:
    now = state[0]
    transaction.connection.execute(
        statement,
        (
            repository,
            name,
            now.digest,
            now.generation,
            now.version,
            now.base,
            now.origin,
            now.media_type,
            now.size,
            now.observed_at,
            write_others(state),
            checked_at,
            transaction.publish(),
        ),
    )
    roots.keep_tag(transaction, repository, name, state)
