"""What the catalog knows of the rows that wait, as the plan needs it. Reads only; they run in a reader's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from proxy.oci.names import Repository
from proxy.store import tagrows
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.remote import RootChange, Waiting, read_waiting
from sync.plan import Decision, Facts, decide, subject_of
from sync.selection import Candidate, Newest, Rules, refers_to

MOST_TAGS = 100_000
"""So many tags of a repository that wait are looked at when the newest are sought."""
MOST_ABOUT = 256
MOST_KEPT = 50_000
"""So many tags are kept while a pass lasts."""

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


class Judge:
    """Decides about rows of a peer, page after page of one pass.

    State: the newest tags of repositories that were met, so that a repository of many tags is not read for every page.
    """

    def __init__(self, peer: str, rules: Rules) -> None:
        self._peer = peer
        self._rules = rules
        self._newest: dict[Repository, Newest] = {}

    def decide(
        self, connection: sqlite3.Connection, rows: Sequence[Waiting], now: float
    ) -> list[tuple[Waiting, Decision]]:
        """Decide by what one snapshot of the catalog says. To be called by one thread at a time."""
        connection.execute("BEGIN")
        try:
            known = _Known(connection, self._peer, self._rules, self._newest)
            return [(row, decide(row, known.facts(row), self._rules, now)) for row in rows]
        finally:
            connection.execute("COMMIT")


def tags_about(connection: sqlite3.Connection, repository: int, digest: str) -> tuple[str, ...]:
    """Return the tags that lead to a digest, by indexes and by what refers to what."""
    about = {"digest": digest, "row": repository, "limit": MOST_ABOUT}
    return tuple(name for (name,) in connection.execute(ABOUT, about))


def newest_here(
    connection: sqlite3.Connection, peer: str, repository: Repository, row: int | None, rules: Rules, count: int
) -> Newest:
    """Return the `count` newest tags that are chosen, of those that are here or wait."""
    dated: dict[str, float] = dict(connection.execute(TAGS_HERE, (row,)))
    for waiting in read_waiting(connection, peer, MOST_TAGS, repository=repository):
        if isinstance(waiting.record, TagChange):
            if waiting.record.digest is None:
                dated.pop(waiting.record.name, None)
            else:
                dated[waiting.record.name] = waiting.record.observed_at
    return Newest(rules, count, (Candidate(name, observed_at) for name, observed_at in dated.items()))


class _Known:
    """What was read for one judgement. State: what is the same for all rows of a repository."""

    def __init__(
        self, connection: sqlite3.Connection, peer: str, rules: Rules, newest: dict[Repository, Newest]
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._rules = rules
        self._rows: dict[Repository, int | None] = {}
        self._newest = newest
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
        return Facts(state, about, self._newest_of(repository, row, record), wait)

    def _row(self, repository: Repository) -> int | None:
        if repository not in self._rows:
            found = self._connection.execute(_ROW, repository).fetchone()
            self._rows[repository] = None if found is None else int(found[0])
        return self._rows[repository]

    def _newest_of(self, repository: Repository, row: int | None, record: RootChange) -> Newest | None:
        """Return the newest of a repository, `record` among them, which may wait since after they were read."""
        count = self._rules.newest
        if count is None:
            return None
        found = self._newest.get(repository)
        if found is None:
            found = newest_here(self._connection, self._peer, repository, row, self._rules, count)
            if sum(map(len, self._newest.values())) > MOST_KEPT:
                self._newest.clear()
            self._newest[repository] = found
        elif isinstance(record, TagChange) and record.digest is None:
            found.drop(record.name)
        elif isinstance(record, TagChange):
            found.add(Candidate(record.name, record.observed_at))
        return found

    def _others_wait(self, repository: Repository, row: int | None) -> bool:
        if repository not in self._wait:
            keys = self._connection.execute(KEYS_WAITING, (self._peer, row))
            self._wait[repository] = any(refers_to(name) is None for (name,) in keys)
        return self._wait[repository]
