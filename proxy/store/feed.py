"""The change feed of one catalog: reading what changed after a position, and merging what another's feed said.

What one record changes is decided in `merging`. Reading is one snapshot, in a reader's thread; merging runs in the
writer's, by steps that keep their place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from proxy.oci.names import Repository
from proxy.store import conflicting
from proxy.store.exchanged import Change, Cursor, MembershipChange, Page, PinChange, TagChange, is_ahead
from proxy.store.merging import Merged, is_news, merge_membership, merge_pin, merge_tag, newest_version
from proxy.store.records import Proof
from proxy.store.tagstate import read_others
from proxy.store.writer import Transaction

__all__ = ["Merged", "is_news", "merge", "read_page"]

STEP_SECONDS = 0.006
COPY_STEP_SECONDS = 0.012
MOST_CURSORS = 256
CURSOR_SECONDS = 90 * 86400.0

TAGS = """
    SELECT seq, upstream, path, name, version, digest, media_type, size, origin, observed_at, checked_at,
        generation, base, others
    FROM tag INDEXED BY tag_seq CROSS JOIN repository ON repository.id = tag.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
MEMBERSHIPS = """
    SELECT seq, upstream, path, digest, version, removed, proof, proved_at, root
    FROM membership INDEXED BY membership_seq CROSS JOIN repository ON repository.id = membership.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
PINS = """
    SELECT seq, upstream, path, reference, version, removed, created
    FROM pin INDEXED BY pin_seq CROSS JOIN repository ON repository.id = pin.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
STATEMENTS = (TAGS, MEMBERSHIPS, PINS)

_CURSORS = "SELECT epoch, node, seq FROM cursor ORDER BY at DESC LIMIT ?"
POSITION = "SELECT (SELECT value FROM meta WHERE key = 'epoch'), (SELECT value FROM meta WHERE key = 'seq')"
_PUT_CURSOR = """
    INSERT INTO cursor (epoch, node, seq, at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        node = excluded.node, seq = max(seq, excluded.seq), at = excluded.at
"""


def read_page(connection: sqlite3.Connection, epoch: str, since: int, limit: int, *, cursors: bool = False) -> Page:
    """Return up to `limit` changes of the catalog `epoch` after `since`, from one snapshot.

    Reads at most `limit` rows of each kind, by their index; none where nothing has changed.
    Nothing that was asked about another epoch, or beyond the last seq, is answered: see `Page.restart`.
    """
    connection.execute("BEGIN")
    try:
        own, head = connection.execute(POSITION).fetchone()
        if epoch != own or since > head:
            return Page(own, head, 0, restart=True, cursors=read_cursors(connection) if cursors else [])
        repositories: dict[tuple[str, str], int] = {}
        records: list[Change] = []
        full = False
        if since < head:
            for statement, make in ((TAGS, tag_change), (MEMBERSHIPS, membership_change), (PINS, pin_change)):
                rows = connection.execute(statement, (since, limit)).fetchall()
                full = full or len(rows) >= limit
                for seq, upstream, path, *values in rows:
                    at = repositories.setdefault((upstream, path), len(repositories))
                    records.append(make(seq, at, *values))
            records.sort(key=_seq)
        full = full or len(records) > limit
        del records[limit:]
        return Page(
            own,
            head,
            records[-1].seq if full else head,
            more=full,
            repositories=list(repositories),
            records=records,
            cursors=read_cursors(connection) if cursors else [],
        )
    finally:
        connection.execute("COMMIT")


def read_cursors(connection: sqlite3.Connection) -> list[Cursor]:
    """Return how far other catalogs have been read, the last read first."""
    return [Cursor(*row) for row in connection.execute(_CURSORS, (MOST_CURSORS,))]


def merge(
    transaction: Transaction,
    page: Page,
    repositories: Sequence[Repository],
    start: int,
    node: str,
    now: float,
    hold: bool,
) -> Merged:
    """Merge the page's records from `start` on, for STEP_SECONDS, and note how far `node` has been read.

    repositories: those of the page, checked. Times that are ahead of `now` are cut to it. A step with refused records
    notes nothing, and none may after it (`hold`): they are to be read again, as the clock that is wrong may be ours.
    A page of a copy notes nothing either: see `note`.
    """
    merged = Merged(start)
    until = perf_counter() + (STEP_SECONDS if page.copy is None else COPY_STEP_SECONDS)
    greatest = 0
    for number in range(start, len(page.records)):
        record = page.records[number]
        merged.done = number + 1
        version = newest_version(record)
        if is_ahead(version, now):
            merged.refused += 1
            merged.refused_from = min(record.seq, merged.refused_from or record.seq)
            continue
        greatest = max(greatest, version)
        repository = repositories[record.at]
        match record:
            case MembershipChange():
                merge_membership(transaction, repository, record, now, merged)
            case TagChange():
                merge_tag(transaction, repository, record, now, merged)
            case PinChange():
                merge_pin(transaction, repository, record, now, merged)
        if number % 16 == 15 and perf_counter() > until:
            break
    transaction.learn(greatest)
    if merged.conflicts:
        conflicting.tidy(transaction, now)
    if hold or merged.refused or page.copy is not None:
        return merged
    whole = merged.done >= len(page.records)
    note(transaction, page.epoch, node, page.next if whole else page.records[merged.done - 1].seq, now)
    if whole and page.cursors and not page.more:
        _learn_cursors(transaction, page.cursors, now)
    return merged


def note(transaction: Transaction, epoch: str, node: str, seq: int, now: float) -> None:
    """Note that up to `seq` all of the catalog `epoch`, which `node` has, was taken over."""
    connection = transaction.connection
    connection.execute("DELETE FROM cursor WHERE node = ? AND epoch <> ?", (node, epoch))
    connection.execute(_PUT_CURSOR, (epoch, node, seq, now))


def look_back(transaction: Transaction, cursors: Sequence[Cursor]) -> bool:
    """Draw a new epoch, and say so, where another has read further in this catalog than it goes.

    It has read another history then, which an older state of the data folder has replaced.
    """
    older = any(cursor.epoch == transaction.epoch and cursor.seq > transaction.seq for cursor in cursors)
    if older:
        transaction.renew()
    return older


def _learn_cursors(transaction: Transaction, cursors: Sequence[Cursor], now: float) -> None:
    connection = transaction.connection
    connection.execute("DELETE FROM cursor WHERE at < ?", (now - CURSOR_SECONDS,))
    connection.executemany(
        _PUT_CURSOR,
        [(cursor.epoch, cursor.node, cursor.seq, now) for cursor in cursors if cursor.epoch != transaction.epoch],
    )


def tag_change(seq: int, at: int, name: str, version: int, *values: Any) -> TagChange:
    """Make a record of a row's values, in the order of TagChange."""
    digest, media_type, size, origin, observed_at, checked_at, generation, base, others = values
    return TagChange(
        seq,
        at,
        name,
        version,
        digest,
        media_type,
        size,
        origin,
        observed_at,
        checked_at,
        generation,
        base,
        read_others(others),
    )


def membership_change(
    seq: int, at: int, digest: str, version: int, removed: int, proof: str, proved_at: float, root: str | None
) -> MembershipChange:
    return MembershipChange(seq, at, digest, version, bool(removed), Proof(proof), proved_at, root)


def pin_change(seq: int, at: int, reference: str, version: int, removed: int, created: float) -> PinChange:
    return PinChange(seq, at, reference, version, bool(removed), created)


def _seq(record: Change) -> int:
    return record.seq
