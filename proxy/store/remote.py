"""What other regions said and this catalog does not say yet: the rows that wait, per peer. Statements, no decisions.

Who puts a row here, and what the peer says altogether, is in `shadow`. Whoever works them off does what a record says
and `settle`s it in the same transaction, or `postpone`s it.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from proxy.oci.names import Repository
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.writer import Transaction

RootChange = TagChange | MembershipChange

_PEER = "(SELECT id FROM peer WHERE name = :peer)"
_WAITING = f"""
    SELECT place, upstream, path, record, since, tries, next_at, error, kind
    FROM pending INDEXED BY pending_next CROSS JOIN repository ON repository.id = pending.repository
    WHERE peer = {_PEER} AND next_at <= :due ORDER BY next_at LIMIT :limit
"""
_WAITING_HERE = f"""
    SELECT place, upstream, path, record, since, tries, next_at, error, kind
    FROM repository CROSS JOIN pending INDEXED BY pending_repository ON pending.repository = repository.id
    WHERE upstream = :upstream AND path = :path AND peer = {_PEER} AND next_at <= :due ORDER BY next_at LIMIT :limit
"""
_REMOVALS = f"""
    SELECT place, upstream, path, record, since, tries, next_at, error, kind
    FROM pending INDEXED BY pending_kind CROSS JOIN repository ON repository.id = pending.repository
    WHERE peer = {_PEER} AND kind = 1 ORDER BY since LIMIT :limit
"""
_COUNTS = f"""
    SELECT kind, next_at > :now AS later, count(*), min(since) FROM pending INDEXED BY pending_kind
    WHERE peer = {_PEER} GROUP BY kind, later
"""
_PUT = """
    INSERT INTO pending (peer, place, repository, key, kind, record, since, next_at, error)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        repository = excluded.repository, key = excluded.key, record = excluded.record,
        since = CASE WHEN kind = excluded.kind THEN since ELSE excluded.since END, kind = excluded.kind,
        tries = 0, next_at = excluded.next_at, error = excluded.error WHERE record <> excluded.record
"""
_SETTLE = f"DELETE FROM pending WHERE peer = {_PEER} AND place = :place AND record = :record"
_POSTPONE = f"""
    UPDATE pending SET tries = tries + 1, error = :error, next_at = :next_at
    WHERE peer = {_PEER} AND place = :place AND record = :record
"""
_PUT_OFF = f"""
    UPDATE pending SET error = :error, next_at = :next_at
    WHERE peer = {_PEER} AND place = :place AND record = :record
"""
_TURN = f"""
    UPDATE pending SET kind = :kind, since = :since, next_at = :next_at
    WHERE peer = {_PEER} AND place = :place AND record = :record
"""
_HURRY = f"""
    UPDATE pending SET next_at = 0 WHERE peer = {_PEER} AND place IN (
        SELECT place FROM pending INDEXED BY pending_next
        WHERE peer = {_PEER} AND next_at > :now AND kind = 0 LIMIT :limit)
"""
STATEMENTS = (_WAITING, _WAITING_HERE, _REMOVALS, _COUNTS, _SETTLE, _POSTPONE, _PUT_OFF, _TURN, _HURRY)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[RootChange] = msgspec.msgpack.Decoder(RootChange)


class Kind(enum.IntEnum):
    """What a row that waits is: an image or a tag, a removal, or what bears a version that cannot be true yet."""

    IMAGE = 0
    REMOVAL = 1
    AHEAD = 2


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record of `peer` that would change something here. since: when it, or what it replaced, was first heard of
    (a removal: when it was itself, as it waits from then on).

    tries: how often it was postponed; next_at: not before then; both times in seconds since the epoch. The record's
    `seq` and `at` are 0. kind: as what it waits, which is what the record alone says until it is `turn`ed.
    """

    peer: str
    place: int
    repository: Repository
    record: RootChange
    since: float
    tries: int
    next_at: float
    error: str | None
    kind: Kind = Kind.IMAGE


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows of a peer wait. oldest: since when the longest known image or tag does, None when none does."""

    images: int
    removals: int
    ahead: int
    oldest: float | None


def read_waiting(
    connection: sqlite3.Connection,
    peer: str,
    limit: int,
    due: float | None = None,
    repository: Repository | None = None,
) -> list[Waiting]:
    """Return up to `limit` rows of a peer, or of one repository there, by `next_at`; with `due` none that is later."""
    about: dict[str, object] = {"peer": peer, "limit": limit, "due": float("inf") if due is None else due}
    if repository is None:
        rows = connection.execute(_WAITING, about)
    else:
        rows = connection.execute(_WAITING_HERE, about | repository._asdict())
    return [_waiting(peer, *row) for row in rows]


def read_removals(connection: sqlite3.Connection, peer: str, limit: int) -> list[Waiting]:
    """Return up to `limit` removals of a peer that wait, due or not, the oldest first."""
    rows = connection.execute(_REMOVALS, {"peer": peer, "limit": limit})
    return [_waiting(peer, *row) for row in rows]


def count_waiting(connection: sqlite3.Connection, peer: str, now: float) -> Counts:
    """Count what waits of a peer. What was ahead of the clock and is no more counts as an image."""
    counted = [0, 0, 0]
    oldest: float | None = None
    for kind, later, rows, since in connection.execute(_COUNTS, {"peer": peer, "now": now}):
        meant = Kind.IMAGE if kind == Kind.AHEAD and not later else Kind(kind)
        counted[meant] += rows
        if meant is Kind.IMAGE:
            oldest = since if oldest is None else min(oldest, since)
    return Counts(counted[Kind.IMAGE], counted[Kind.REMOVAL], counted[Kind.AHEAD], oldest)


def settle(transaction: Transaction, done: Sequence[Waiting]) -> None:
    """Forget the rows, but for those that say something else by now."""
    transaction.connection.executemany(_SETTLE, [_named(waiting) for waiting in done])


def postpone(transaction: Transaction, waiting: Waiting, error: str | None, next_at: float) -> None:
    """Try a row again at `next_at`, unless it says something else by now; `error` tells why."""
    transaction.connection.execute(_POSTPONE, _named(waiting) | {"error": error, "next_at": next_at})


def put_off(transaction: Transaction, waiting: Waiting, error: str | None, next_at: float) -> None:
    """Look at a row again at `next_at`, as `postpone`, where it was not the row that failed."""
    transaction.connection.execute(_PUT_OFF, _named(waiting) | {"error": error, "next_at": next_at})


def turn(transaction: Transaction, waiting: Waiting, kind: Kind, since: float, next_at: float) -> None:
    """Let a row wait as another kind, since what is known here makes of it what its record alone does not say."""
    transaction.connection.execute(_TURN, _named(waiting) | {"kind": kind, "since": since, "next_at": next_at})


def hurry(transaction: Transaction, peer: str, now: float, limit: int) -> bool:
    """Make up to `limit` images due at once that failed and were to be tried again later; True while there are more."""
    cursor = transaction.connection.execute(_HURRY, {"peer": peer, "now": now, "limit": limit})
    return cursor.rowcount >= limit


def put_waiting(
    transaction: Transaction,
    peer: int,
    place: int,
    repository: int,
    key: str,
    record: RootChange,
    now: float,
    ahead_until: float | None = None,
) -> bool:
    """Let a record wait in the place of what `peer`, by its id, said before; True when it did not wait already.

    ahead_until: its version is ahead of our clock until then.
    """
    removal = record.digest is None if isinstance(record, TagChange) else record.removed
    kind, error = (Kind.REMOVAL if removal else Kind.IMAGE), None
    if ahead_until is not None:
        kind = Kind.AHEAD
        error = "its version is of a clock that is ahead of ours: set the clocks of both regions right"
    row = (peer, place, repository, key, kind, spell(record), now, ahead_until or 0.0, error)
    return transaction.connection.execute(_PUT, row).rowcount > 0


def spell(record: RootChange) -> bytes:
    """Return a record as it is kept: without its place in a page or a feed."""
    return _ENCODER.encode(msgspec.structs.replace(record, seq=0, at=0))


def read_spelled(spelled: bytes) -> RootChange:
    """Return a record that `spell` wrote."""
    return _DECODER.decode(spelled)


def _waiting(
    peer: str,
    place: int,
    upstream: str,
    path: str,
    record: bytes,
    since: float,
    tries: int,
    next_at: float,
    error: str | None,
    kind: int,
) -> Waiting:
    there = Repository(upstream, path)
    return Waiting(peer, place, there, read_spelled(record), since, tries, next_at, error, Kind(kind))


def _named(waiting: Waiting) -> dict[str, object]:
    return {"peer": waiting.peer, "place": waiting.place, "record": spell(waiting.record)}
