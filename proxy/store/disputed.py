"""What the catalog knows of one tag and other regions: who saw it as it is here, what lost against it. Reads."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from proxy.oci.names import Repository, Tag

_ORIGIN = """
    SELECT origin, observed_at FROM tag
    WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND name = ?
"""
_LOST = """
    SELECT winner, winner_origin, digest, origin, found_at FROM conflict
    WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND name = ?
    ORDER BY found_at DESC LIMIT ?
"""
STATEMENTS = (_ORIGIN, _LOST)


@dataclass(frozen=True, slots=True)
class Lost:
    """An entry of a tag that did not know of the one that won; `''` is a removal. found_at: seconds since the epoch."""

    winner: str
    winner_region: str
    loser: str
    loser_region: str
    found_at: float


def read_origin(connection: sqlite3.Connection, repository: Repository, tag: Tag) -> tuple[str, float] | None:
    """Return the region that saw the tag as it is, and when it did, in seconds since the epoch."""
    row: tuple[str, float] | None = connection.execute(_ORIGIN, (*repository, tag)).fetchone()
    return row


def read_lost(connection: sqlite3.Connection, repository: Repository, tag: Tag, limit: int) -> list[Lost]:
    """Return up to `limit` conflicts of a tag, the newest first."""
    return [Lost(*row) for row in connection.execute(_LOST, (*repository, tag, limit))]
