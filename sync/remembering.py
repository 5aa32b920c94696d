"""By which filter a peer's records were last worked off, as the catalog keeps it over restarts. Statements only."""

from __future__ import annotations

import sqlite3

import msgspec

from proxy.store.writer import Transaction
from sync.selection import Rules

KEY = "sync filter "


def spell(rules: Rules) -> bytes:
    """Return a filter as it is kept. Not its scope: what comes into that is news of the peer."""
    tags, platforms = sorted(map(str, rules.tags)), sorted(map(str, rules.platforms))
    return msgspec.json.encode([tags, rules.newest, platforms, rules.referrers])


def read_rules(connection: sqlite3.Connection, peer: str) -> bytes | None:
    """Return the filter that was in force; None: none was yet."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (KEY + peer,)).fetchone()
    return None if found is None else bytes(found[0])


def write_rules(transaction: Transaction, peer: str, spelled: bytes) -> None:
    """Note which filter is in force."""
    row = KEY + peer, spelled
    transaction.connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", row)
