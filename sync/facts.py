"""What the catalog knows of the rows that wait, as the plan needs it. Reads only; they run in a reader's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from proxy.oci.names import Repository
from proxy.store import tagrows
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.remote import Waiting, read_waiting
from sync.plan import Decision, Facts, decide, subject_of
from sync.selection import Candidate, Rules, newest, refers_to

MOST_TAGS = 100_000
"""So many tags of a repository that wait are looked at when the newest are sought."""
MOST_ABOUT = 256

_ROW = "SELECT id FROM repository WHERE upstream = ? AND path = ?"
ABOUT = """
    WITH RECURSIVE above (digest) AS (
        SELECT :digest
        UNION SELECT edge.parent FROM above CROSS JOIN edge ON edge.child = above.digest
        UNION SELECT referrer.subject FROM above CROSS JOIN referrer ON referrer.digest = above.digest)
    SELECT tag.name FROM above CROSS JOIN tag ON tag.digest = above.digest AND tag.repository = :row LIMIT :limit
"""
TAGS_HERE = "SELECT name, observed_at FROM tag WHERE repository = ? AND digest IS NOT NULL"
KEYS_WAITING = """
    SELECT substr(key, 3) FROM pending INDEXED BY pending_repository
    WHERE peer = (SELECT id FROM peer WHERE name = ?) AND repository = ? AND key >= 't:' AND key < 't;'
"""
STATEMENTS = (ABOUT, TAGS_HERE, KEYS_WAITING)


def judge(
    connection: sqlite3.Connection, peer: str, rows: Sequence[Waiting], rules: Rules, now: float
) -> list[tuple[Waiting, Decision]]:
    """Decide about rows of a peer, by what one snapshot of the catalog says."""
    connection.execute("BEGIN")
    try:
        known = _Known(connection, peer, rules)
        return [(row, decide(row, known.facts(row), rules, now)) for row in rows]
    finally:
        connection.execute("COMMIT")


def tags_about(connection: sqlite3.Connection, repository: int, digest: str) -> tuple[str, ...]:
    """Return the tags that lead to a digest, by indexes and by what refers to what."""
    about = {"digest": digest, "row": repository, "limit": MOST_ABOUT}
    return tuple(name for (name,) in connection.execute(ABOUT, about))


def newest_here(
    connection: sqlite3.Connection, peer: str, repository: Repository, row: int | None, rules: Rules
) -> frozenset[str] | None:
    """Return the newest tags that are chosen, of those that are here or wait; None where all are chosen."""
    if rules.newest is None:
        return None
    dated: dict[str, float] = dict(connection.execute(TAGS_HERE, (row,)))
    for waiting in read_waiting(connection, peer, MOST_TAGS, repository=repository):
        if isinstance(waiting.record, TagChange):
            if waiting.record.digest is None:
                dated.pop(waiting.record.name, None)
            else:
                dated[waiting.record.name] = waiting.record.observed_at
    return newest(rules, (Candidate(name, observed_at) for name, observed_at in dated.items()))


class _Known:
    """What was read for one judgement. State: what is the same for all rows of a repository."""

    def __init__(self, connection: sqlite3.Connection, peer: str, rules: Rules) -> None:
        self._connection = connection
        self._peer = peer
        self._rules = rules
        self._rows: dict[Repository, int | None] = {}
        self._newest: dict[Repository, frozenset[str] | None] = {}
        self._wait: dict[Repository, bool] = {}

    def facts(self, waiting: Waiting) -> Facts:
        """Read what the plan asks about one row."""
        repository, record = waiting.repository, waiting.record
        row = self._row(repository)
        subject = subject_of(waiting)
        state = None
        if isinstance(record, TagChange) and row is not None:
            known = tagrows.read(self._connection, row, record.name)
            state = None if known is None else known.state
        about: tuple[str, ...] = ()
        if self._rules.by_tag and row is not None and (subject is not None or isinstance(record, MembershipChange)):
            about = tags_about(self._connection, row, subject or str(record.digest))
        wait = subject is not None and self._rules.by_tag and not about and self._others_wait(repository, row)
        return Facts(state, about, self._newest_of(repository, row), wait)

    def _row(self, repository: Repository) -> int | None:
        if repository not in self._rows:
            found = self._connection.execute(_ROW, repository).fetchone()
            self._rows[repository] = None if found is None else int(found[0])
        return self._rows[repository]

    def _newest_of(self, repository: Repository, row: int | None) -> frozenset[str] | None:
        if repository not in self._newest:
            self._newest[repository] = newest_here(self._connection, self._peer, repository, row, self._rules)
        return self._newest[repository]

    def _others_wait(self, repository: Repository, row: int | None) -> bool:
        if repository not in self._wait:
            keys = self._connection.execute(KEYS_WAITING, (self._peer, row))
            self._wait[repository] = any(refers_to(name) is None for (name,) in keys)
        return self._wait[repository]
