"""The change feed of one catalog: reading what changed after a position, and merging what another's feed said.

Which of two records prevails is decided in `exchanged`. Reading is one snapshot, in a reader's thread; merging runs in
the writer's. A record that changes something here gets a `seq` of this catalog, so that whoever reads this one hears of
it too; one that changes nothing is not stamped, so that catalogs that all read one another come to rest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from proxy.oci.names import Repository
from proxy.store.exchanged import Change, Cursor, MembershipChange, Page, PinChange, TagChange, is_ahead
from proxy.store.records import Proof
from proxy.store.writer import Transaction

STEP_SECONDS = 0.006
COPY_STEP_SECONDS = 0.012
MOST_NAMED = 1000
MOST_CURSORS = 256
CURSOR_SECONDS = 90 * 86400.0

TAGS = """
    SELECT seq, upstream, path, name, version, digest, media_type, size, origin, observed_at, checked_at
    FROM tag INDEXED BY tag_seq CROSS JOIN repository ON repository.id = tag.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
MEMBERSHIPS = """
    SELECT seq, upstream, path, digest, version, removed, proof, proved_at
    FROM membership INDEXED BY membership_seq CROSS JOIN repository ON repository.id = membership.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
PINS = """
    SELECT seq, upstream, path, reference, version, removed, created
    FROM pin INDEXED BY pin_seq CROSS JOIN repository ON repository.id = pin.repository
    WHERE seq > ? ORDER BY seq LIMIT ?
"""
KNOWN_TAG = "SELECT version, digest FROM tag WHERE repository = ? AND name = ?"
KNOWN_MEMBERSHIP = "SELECT version, removed FROM membership WHERE repository = ? AND digest = ?"
KNOWN_PIN = "SELECT version, removed FROM pin WHERE repository = ? AND reference = ?"
CHILDREN = "SELECT child FROM edge WHERE parent = ? LIMIT ?"
STATEMENTS = (TAGS, MEMBERSHIPS, PINS, KNOWN_TAG, KNOWN_MEMBERSHIP, KNOWN_PIN, CHILDREN)

_CURSORS = "SELECT epoch, node, seq FROM cursor ORDER BY at DESC LIMIT ?"
POSITION = "SELECT (SELECT value FROM meta WHERE key = 'epoch'), (SELECT value FROM meta WHERE key = 'seq')"
_PUT_TAG = """
    INSERT INTO tag (repository, name, digest, media_type, size, version, origin, observed_at, checked_at, seq)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        pending = CASE WHEN digest IS excluded.digest THEN pending END,
        pending_at = CASE WHEN digest IS excluded.digest THEN pending_at END,
        checked_at = CASE WHEN digest IS excluded.digest THEN max(checked_at, excluded.checked_at)
            ELSE excluded.checked_at END,
        digest = excluded.digest, media_type = excluded.media_type, size = excluded.size,
        version = excluded.version, origin = excluded.origin, observed_at = excluded.observed_at, seq = excluded.seq
"""
_PUT_MEMBERSHIP = """
    INSERT INTO membership (repository, digest, proof, proved_at, version, removed, seq)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        proof = CASE WHEN removed THEN excluded.proof ELSE proof END,
        proved_at = CASE WHEN removed THEN excluded.proved_at ELSE proved_at END,
        version = excluded.version, removed = excluded.removed, seq = excluded.seq
"""
_PUT_PIN = """
    INSERT INTO pin (repository, reference, created, version, removed, seq) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET created = CASE WHEN removed THEN excluded.created ELSE created END,
        version = excluded.version, removed = excluded.removed, seq = excluded.seq
"""
_PUT_CURSOR = """
    INSERT INTO cursor (epoch, node, seq, at) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        node = excluded.node, seq = max(seq, excluded.seq), at = excluded.at
"""


@dataclass(slots=True)
class Merged:
    """What one step of a merge did.

    done: up to which of the page's records it came. tags, memberships, pins: how many changed something here. refused:
    how many are of a clock that is ahead; refused_from: the least `seq` of those. The rest is void in the caches before
    the catalog: tags that were something else, memberships that ended, and what those named; void_all: that is so much
    that everything is. moved: answers given before may not be given again.
    """

    done: int
    tags: int = 0
    memberships: int = 0
    pins: int = 0
    refused: int = 0
    refused_from: int | None = None
    void_tags: list[tuple[Repository, str]] = field(default_factory=list)
    void_members: list[tuple[Repository, str]] = field(default_factory=list)
    void_named: list[tuple[Repository, str]] = field(default_factory=list)
    void_all: bool = False
    moved: bool = False


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
            for statement, make in ((TAGS, TagChange), (MEMBERSHIPS, membership_change), (PINS, pin_change)):
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
        if is_ahead(record.version, now):
            merged.refused += 1
            merged.refused_from = min(record.seq, merged.refused_from or record.seq)
            continue
        greatest = max(greatest, record.version)
        repository = repositories[record.at]
        match record:
            case MembershipChange():
                _merge_membership(transaction, repository, record, now, merged)
            case TagChange():
                _merge_tag(transaction, repository, record, now, merged)
            case PinChange():
                _merge_pin(transaction, repository, record, now, merged)
        if number % 16 == 15 and perf_counter() > until:
            break
    transaction.learn(greatest)
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


def _merge_tag(transaction: Transaction, repository: Repository, record: TagChange, now: float, merged: Merged) -> None:
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_TAG, (row, record.name)).fetchone()
    if known is not None and record.rank <= (known[0], known[1] or ""):
        return
    connection.execute(
        _PUT_TAG,
        (
            row,
            record.name,
            record.digest,
            record.media_type,
            record.size,
            record.version,
            record.origin,
            min(record.observed_at, now),
            min(record.checked_at, now),
            transaction.publish(),
        ),
    )
    merged.tags += 1
    if known is not None:
        merged.void_tags.append((repository, record.name))
        merged.moved = merged.moved or known[1] != record.digest


def _merge_membership(
    transaction: Transaction, repository: Repository, record: MembershipChange, now: float, merged: Merged
) -> None:
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_MEMBERSHIP, (row, record.digest)).fetchone()
    if known is not None and record.rank <= (known[0], not known[1]):
        return
    proved_at = min(record.proved_at, now)
    connection.execute(
        _PUT_MEMBERSHIP,
        (row, record.digest, record.proof, proved_at, record.version, record.removed, transaction.publish()),
    )
    merged.memberships += 1
    if record.removed and known is not None and not known[1]:
        merged.void_members.append((repository, record.digest))
        if not merged.void_all:
            children = connection.execute(CHILDREN, (record.digest, MOST_NAMED + 1))
            merged.void_named += [(repository, child) for (child,) in children]
            merged.void_all = len(merged.void_named) > MOST_NAMED
        merged.moved = True


def _merge_pin(transaction: Transaction, repository: Repository, record: PinChange, now: float, merged: Merged) -> None:
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_PIN, (row, record.reference)).fetchone()
    if known is not None and record.rank <= (known[0], not known[1]):
        return
    connection.execute(
        _PUT_PIN,
        (row, record.reference, min(record.created, now), record.version, record.removed, transaction.publish()),
    )
    merged.pins += 1


def membership_change(
    seq: int, at: int, digest: str, version: int, removed: int, proof: str, proved_at: float
) -> MembershipChange:
    return MembershipChange(seq, at, digest, version, bool(removed), Proof(proof), proved_at)


def pin_change(seq: int, at: int, reference: str, version: int, removed: int, created: float) -> PinChange:
    return PinChange(seq, at, reference, version, bool(removed), created)


def _seq(record: Change) -> int:
    return record.seq
