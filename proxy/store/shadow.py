"""What a peer, another region, says altogether: its roots as places and marks under its own key, and what was read.

`merge` takes over a page of its records: into the shadow, and as far as they change something here, at once (a manifest
that it has: what it contains is proven, nothing moves) or into the rows that wait (`remote`). Rows that the peer has no
more leave the shadow, and what waits because of them; nothing else is removed. All runs in the writer's thread, by
steps of STEP_SECONDS between which others have their turn.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import msgspec

from proxy.oci.names import Repository
from proxy.store.exchanged import AHEAD_SECONDS, MembershipChange, TagChange, is_ahead
from proxy.store.feed import STEP_SECONDS, Merged
from proxy.store.merging import KNOWN_MEMBERSHIP, answer, is_news, merge_membership, newest_version
from proxy.store.ranges import Interval, kept, read_root
from proxy.store.records import Proof
from proxy.store.remote import Kind, RootChange, put_waiting, read_spelled
from proxy.store.roots import Marks
from proxy.store.writer import Transaction

DROP_ROWS = 500
MOST_POSITIONS = 16
SEED_ROWS = 500
BEGIN = -(1 << 63)
"""A place before which none is."""

_PEER = "SELECT id, mesh FROM peer WHERE name = ?"
_PUT_PEER = "INSERT OR IGNORE INTO peer (name) VALUES (?)"
POSITIONS = "SELECT epoch, seq FROM position WHERE peer = ? ORDER BY at DESC LIMIT ?"
_PUT_POSITION = "INSERT OR REPLACE INTO position (peer, epoch, seq, at) VALUES (?, ?, ?, ?)"
_PUT_ROOT = """
    INSERT INTO root (peer, place, repository, mark) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET mark = excluded.mark WHERE mark <> excluded.mark
"""
_DROP_WAITING = "DELETE FROM pending WHERE peer = ? AND place = ?"
_NO_NEWS = "DELETE FROM pending WHERE peer = ? AND place = ? AND (kind <> ? OR ?)"
PLACES = "SELECT place FROM root WHERE peer = ? AND place BETWEEN ? AND ? ORDER BY place LIMIT ?"
WAITING_PLACES = "SELECT place FROM pending WHERE peer = ? AND place BETWEEN ? AND ? ORDER BY place LIMIT ?"
_DROP = "DELETE FROM root WHERE peer = ? AND place = ?"
OWN = """
    SELECT place, repository, key, upstream, path
    FROM root CROSS JOIN repository ON repository.id = root.repository
    WHERE peer = 0 AND place >= ? ORDER BY place LIMIT ?
"""
_WAITING = """
    SELECT place, upstream, path, pending.repository, record
    FROM pending CROSS JOIN repository ON repository.id = pending.repository
    WHERE peer = ? AND place >= ? ORDER BY place LIMIT ?
"""
_MOVE = "UPDATE OR REPLACE pending SET place = ? WHERE peer = ? AND place = ?"
_CLEAR = "DELETE FROM root WHERE peer = ? AND place IN (SELECT place FROM root WHERE peer = ? LIMIT ?)"
_CLEAR_WAITING = "DELETE FROM pending WHERE peer = ? AND place IN (SELECT place FROM pending WHERE peer = ? LIMIT ?)"
_PEERS = "SELECT name FROM peer ORDER BY name"
_PRESENT = "SELECT present FROM blob WHERE digest = ?"
_TIDY = """
    DELETE FROM position WHERE peer = ? AND epoch NOT IN
        (SELECT epoch FROM position WHERE peer = ? ORDER BY at DESC LIMIT ?)
"""
STATEMENTS = (
    PLACES,
    WAITING_PLACES,
    OWN,
    _PEER,
    _DROP,
    _DROP_WAITING,
    _NO_NEWS,
    _WAITING,
    _MOVE,
    _CLEAR,
    _CLEAR_WAITING,
    _PRESENT,
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer by its id here, the key of its hashes (None: not known yet), and how far its catalogs were read."""

    id: int
    mesh: bytes | None
    positions: Mapping[str, int]


@dataclass(slots=True)
class Taken:
    """What a step did. done: up to which record it came; news: rows that wait now and did not; ahead: for a clock."""

    done: int
    merged: int = 0
    news: int = 0
    ahead: int = 0


def introduce(transaction: Transaction, name: str) -> Peer:
    """Return a peer, making its row when it is new."""
    connection = transaction.connection
    connection.execute(_PUT_PEER, (name,))
    number, mesh = connection.execute(_PEER, (name,)).fetchone()
    return Peer(number, mesh, dict(connection.execute(POSITIONS, (number, MOST_POSITIONS)).fetchall()))


def merge(
    transaction: Transaction,
    peer: int,
    marks: Marks,
    records: Sequence[tuple[Repository, RootChange]],
    start: int,
    position: tuple[str, int] | None,
    now: float,
) -> Taken:
    """Take over records of a peer from `start` on, for STEP_SECONDS; with the last one its feed was read to `position`.

    A version ahead of our clock is not learned: it waits until it can be true, as it is the other clock that is wrong
    or ours that will be set right.
    """
    taken = Taken(start)
    until = perf_counter() + STEP_SECONDS
    merged = Merged(0)
    greatest = 0
    for number in range(start, len(records)):
        repository, record = records[number]
        key, place, mark = marks.of(repository, record)
        row = transaction.repository(repository)
        transaction.connection.execute(_PUT_ROOT, (peer, place, row, mark))
        version = newest_version(record)
        if not is_news(transaction.connection, row, record):
            image = isinstance(record, MembershipChange) and not record.removed
            transaction.connection.execute(_NO_NEWS, (peer, place, Kind.IMAGE, not image))
            if isinstance(record, TagChange):
                answer(transaction, row, record)
        elif is_ahead(version, now):
            taken.ahead += 1
            taken.news += put_waiting(transaction, peer, place, row, key, record, now, _admissible(version))
        elif isinstance(record, TagChange) or record.removed:
            taken.news += put_waiting(transaction, peer, place, row, key, record, now)
        else:
            greatest = max(greatest, version)
            wanted = _is_wanted(transaction.connection, row, record)
            merge_membership(transaction, repository, msgspec.structs.replace(record, proof=Proof.SYNCED), now, merged)
            if wanted:
                taken.news += put_waiting(transaction, peer, place, row, key, record, now)
        taken.done = number + 1
        if number % 16 == 15 and perf_counter() > until:
            break
    transaction.learn(greatest)
    taken.merged = merged.memberships
    if taken.done >= len(records) and position is not None:
        note(transaction, peer, *position, now)
    return taken


def note(transaction: Transaction, peer: int, epoch: str, seq: int, now: float) -> None:
    """Note that up to `seq` all of the catalog `epoch` of a peer was taken over; of the last MOST_POSITIONS epochs."""
    connection = transaction.connection
    connection.execute(_PUT_POSITION, (peer, epoch, seq, now))
    connection.execute(_TIDY, (peer, peer, MOST_POSITIONS))


def drop(transaction: Transaction, peer: int, places: Sequence[int]) -> None:
    """Forget that a peer has anything at these places, as they were told, and what waits because of it."""
    rows = [(peer, kept(place)) for place in places]
    transaction.connection.executemany(_DROP, rows)
    transaction.connection.executemany(_DROP_WAITING, rows)


def drop_range(transaction: Transaction, peer: int, interval: Interval) -> bool:
    """Take a step of forgetting all that a peer has in a range. True while there is more."""
    more = False
    for statement in (PLACES, WAITING_PLACES):
        where = (peer, kept(interval.low), kept(interval.high), DROP_ROWS)
        rows = [(peer, place) for (place,) in transaction.connection.execute(statement, where).fetchall()]
        transaction.connection.executemany(_DROP, rows)
        transaction.connection.executemany(_DROP_WAITING, rows)
        more = more or len(rows) >= DROP_ROWS
    return more


def forget_mesh(transaction: Transaction, peer: int) -> None:
    """Begin anew with a peer: its key is not known, and nothing of it was read. `clear` what it said after this."""
    transaction.connection.execute("UPDATE peer SET mesh = NULL WHERE id = ?", (peer,))
    transaction.connection.execute("DELETE FROM position WHERE peer = ?", (peer,))


def clear(transaction: Transaction, peer: int) -> bool:
    """Take a step of forgetting all that a peer has, but not what waits. True while there is more."""
    return transaction.connection.execute(_CLEAR, (peer, peer, DROP_ROWS)).rowcount >= DROP_ROWS


def move_waiting(transaction: Transaction, peer: int, marks: Marks, begin: int) -> int | None:
    """Take a step of placing what waits anew, under another key, and suppose that the peer still says it.

    Returns from which place to go on, None: nowhere. Rows may be met twice.
    """
    connection = transaction.connection
    rows = connection.execute(_WAITING, (peer, begin, SEED_ROWS)).fetchall()
    for place, upstream, path, row, spelled in rows:
        _, moved, mark = marks.of(Repository(upstream, path), read_spelled(spelled))
        connection.execute(_MOVE, (moved, peer, place))
        connection.execute(_PUT_ROOT, (peer, moved, row, mark))
    return int(rows[-1][0]) + 1 if len(rows) >= SEED_ROWS else None


def learn_mesh(transaction: Transaction, peer: int, mesh: bytes) -> None:
    """Note the key of a peer's hashes, once nothing is kept under another one."""
    transaction.connection.execute("UPDATE peer SET mesh = ? WHERE id = ?", (mesh, peer))


def read_names(connection: sqlite3.Connection) -> list[str]:
    """Return the names of all peers that were ever followed and not forgotten."""
    return [name for (name,) in connection.execute(_PEERS)]


def forget(transaction: Transaction, name: str) -> bool:
    """Take a step of forgetting a peer and all that it said. True while there is more; cut short, it is begun anew."""
    connection = transaction.connection
    found = connection.execute(_PEER, (name,)).fetchone()
    if found is None:
        return False
    number = found[0]
    forget_mesh(transaction, number)
    more = connection.execute(_CLEAR_WAITING, (number, number, DROP_ROWS)).rowcount >= DROP_ROWS
    if clear(transaction, number) or more:
        return True
    connection.execute("DELETE FROM fingerprint WHERE peer = ?", (number,))
    connection.execute("DELETE FROM peer WHERE id = ?", (number,))
    return False


def read_guesses(
    connection: sqlite3.Connection, begin: int, marks: Marks
) -> tuple[list[tuple[int, int, Repository]], int | None]:
    """Return place, mark and repository that our own roots would have with a peer, and from which place to go on."""
    guesses: list[tuple[int, int, Repository]] = []
    rows = connection.execute(OWN, (begin, SEED_ROWS)).fetchall()
    for _, row, key, upstream, path in rows:
        record = read_root(connection, row, key)
        if record is not None:
            _, place, mark = marks.of(Repository(upstream, path), record)
            guesses.append((place, mark, Repository(upstream, path)))
    return guesses, rows[-1][0] + 1 if len(rows) >= SEED_ROWS else None


def seed(transaction: Transaction, peer: int, guesses: Sequence[tuple[int, int, Repository]]) -> None:
    """Suppose that a peer has what we have: comparing the two corrects it, and only what differs has to travel."""
    transaction.connection.executemany(
        _PUT_ROOT, [(peer, place, transaction.repository(repository), mark) for place, mark, repository in guesses]
    )


def _is_wanted(connection: sqlite3.Connection, repository: int, record: MembershipChange) -> bool:
    """Tell whether a manifest is new here: what was known and is not stored was evicted, and is not brought back."""
    known = connection.execute(KNOWN_MEMBERSHIP, (repository, record.digest)).fetchone()
    if known is not None and (not known[1] or record.rank <= (known[0], not known[1])):
        return False
    present = connection.execute(_PRESENT, (record.digest,)).fetchone()
    return present is None or not present[0]


def _admissible(version: int) -> float:
    """Return when a version will not be ahead of our clock any more."""
    return (version >> 16) / 1000 - AHEAD_SECONDS + 0.001
