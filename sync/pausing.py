"""Which peers are paused, as the catalog keeps it over restarts. Statements, no decisions."""

from __future__ import annotations

import sqlite3

import msgspec

from proxy.store.writer import Transaction

KEY = "sync paused"

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(set[str]).decode


def read_paused(connection: sqlite3.Connection) -> set[str]:
    """Return the names of the peers that are paused."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
    return set() if found is None else _decode(found[0])


def write_paused(transaction: Transaction, peer: str, *, paused: bool) -> set[str]:
    """Note that a peer is paused, or is not; return all that are."""
    names = read_paused(transaction.connection)
    (names.add if paused else names.discard)(peer)
    if names:
        transaction.connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (KEY, _encode(names)))
    else:
        transaction.connection.execute("DELETE FROM meta WHERE key = ?", (KEY,))
    return names
