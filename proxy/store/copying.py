"""A whole catalog in the order of its keys, for one that has read nothing of it yet. What changes later is `feed`'s.

In the order of `seq` each record would fall on other pages of the reader's tables and indexes, which then are written
once per record. In the order of digests the index on these grows at its end, and a page's records are told by
repository, so that those which lie together come together.

A copy is of no one moment, and need not be: no key ever goes away, and what changes while it is read has a `seq` beyond
the head that its first page tells. From there the feed tells the rest.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

from proxy.store.exchanged import Change, Page
from proxy.store.feed import POSITION, membership_change, pin_change, tag_change

BEGIN = "m:0:"
"""The place where a copy begins."""

MEMBERSHIPS = """
    SELECT membership.repository, digest, seq, upstream, path, digest, version, removed, proof, proved_at, root
    FROM membership INDEXED BY membership_digest CROSS JOIN repository ON repository.id = membership.repository
    WHERE (digest, repository) > (:key, :repository) ORDER BY digest, repository LIMIT :limit
"""
TAGS = """
    SELECT tag.repository, name, seq, upstream, path, name, version, digest, media_type, size, origin, observed_at,
        checked_at, generation, base, others
    FROM tag CROSS JOIN repository ON repository.id = tag.repository
    WHERE (repository, name) > (:repository, :key) ORDER BY repository, name LIMIT :limit
"""
PINS = """
    SELECT pin.repository, reference, seq, upstream, path, reference, version, removed, created
    FROM pin CROSS JOIN repository ON repository.id = pin.repository
    WHERE (repository, reference) > (:repository, :key) ORDER BY repository, reference LIMIT :limit
"""
STATEMENTS = (MEMBERSHIPS, TAGS, PINS)
_PLACE = re.compile(r"([mtp]):(\d{1,18}):([a-zA-Z0-9._:-]{0,255})")
_KINDS: dict[str, tuple[str, Callable[..., Change], str]] = {
    "m": (MEMBERSHIPS, membership_change, "t:0:"),
    "t": (TAGS, tag_change, "p:0:"),
    "p": (PINS, pin_change, ""),
}


def split(place: str) -> tuple[str, int, str]:
    """Return kind, repository and key of the record that a place comes after. Raises ValueError where it is none."""
    parts = _PLACE.fullmatch(place)
    if parts is None:
        raise ValueError("that is no place of a copy")
    return parts[1], int(parts[2]), parts[3]


def read_copy(connection: sqlite3.Connection, epoch: str, since: int, place: str, limit: int) -> Page:
    """Return up to `limit` records of the catalog `epoch` after `place`, all of one kind, from one snapshot.

    `Page.copy` is where to go on, empty at the end. Restarts as `feed.read_page` does. Raises as `split`.
    """
    kind, repository, key = split(place)
    statement, make, following = _KINDS[kind]
    about: dict[str, Any] = {"repository": repository, "key": key, "limit": limit}
    connection.execute("BEGIN")
    try:
        own, head = connection.execute(POSITION).fetchone()
        if epoch != own or since > head:
            return Page(own, head, 0, restart=True)
        rows = connection.execute(statement, about).fetchall()
    finally:
        connection.execute("COMMIT")
    if len(rows) >= limit:
        following = f"{kind}:{rows[-1][0]}:{rows[-1][1]}"
    rows.sort(key=_of_repository)
    repositories: dict[tuple[str, str], int] = {}
    records: list[Change] = []
    for _, _, seq, upstream, path, *values in rows:
        at = repositories.setdefault((upstream, path), len(repositories))
        records.append(make(seq, at, *values))
    return Page(own, head, 0, repositories=list(repositories), records=records, copy=following)


def _of_repository(row: tuple[int, ...]) -> int:
    return row[0]
