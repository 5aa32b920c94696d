"""Eviction in the catalog: what nobody holds, least recently used first, in steps of bounded length.

A root is a present blob that no present manifest names or, being a referrer, refers to: the top of a closure, or
an orphan. `blob.holders` is kept by triggers, so roots are found by index and nothing is scanned. A step runs in the
writer's thread as one operation: there it looks again at everything (holders, pins, holds, attempts, last use), marks
what goes as absent, parents before children, and gives the file to `move`. Records and edges stay. Whatever a step
leaves of a large closure is carried on by the next.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic, time

from proxy.oci.digest import Digest
from proxy.store import closure, holding
from proxy.store.evict import Reason, Usage
from proxy.store.writer import Transaction

STEP_BLOBS = 100
STEP_SECONDS = 0.008
AHEAD_SECONDS = 3600.0
"""How far last uses may lie ahead before the clock is taken to have gone back."""
FIRST = (-math.inf, "")

USAGE = "SELECT bytes, (SELECT coalesce(sum(reserved), 0) FROM intent) FROM counter"
ROOT = """
    SELECT digest, last_use, media_type IS NOT NULL FROM blob
    WHERE present AND holders = 0 AND (last_use, digest) > (?, ?) ORDER BY last_use, digest LIMIT 1
"""
STATE = "SELECT size, holders FROM blob WHERE digest = ? AND present"
NAMED = "SELECT child FROM edge WHERE parent = :digest UNION ALL SELECT digest FROM referrer WHERE subject = :digest"
KEPT = """
    SELECT EXISTS (SELECT 1 FROM pin WHERE reference = :digest AND NOT removed)
        OR EXISTS (SELECT 1 FROM tag CROSS JOIN pin ON pin.repository = tag.repository AND pin.reference = tag.name
            WHERE tag.digest = :digest AND NOT pin.removed)
        OR EXISTS (SELECT 1 FROM intent WHERE digest = :digest)
        OR EXISTS (SELECT 1 FROM upload WHERE digest = :digest AND held)
        OR EXISTS (SELECT 1 FROM hold WHERE digest = :digest)
"""
MANIFESTS_BELOW = """
    WITH RECURSIVE below (digest) AS (
        SELECT :digest
        UNION
        SELECT edge.child FROM below CROSS JOIN edge ON edge.parent = below.digest
            CROSS JOIN blob ON blob.digest = edge.child AND blob.present AND blob.media_type IS NOT NULL
    )
    SELECT max(CASE WHEN blob.last_use <= :now THEN blob.last_use END), max(EXISTS (
        SELECT 1 FROM edge CROSS JOIN intent ON intent.digest = edge.child WHERE edge.parent = below.digest
    )) FROM below CROSS JOIN blob ON blob.digest = below.digest
"""
AHEAD = "SELECT digest FROM blob WHERE present AND holders = 0 AND last_use > ? LIMIT 1000"
TAGGED = """
    SELECT upstream || '/' || path, name FROM tag CROSS JOIN repository ON repository.id = tag.repository
    WHERE tag.digest = ? LIMIT 1
"""
MEMBER = """
    SELECT upstream || '/' || path FROM membership CROSS JOIN repository ON repository.id = membership.repository
    WHERE membership.digest = ? AND NOT membership.removed LIMIT 1
"""
STATEMENTS = (ROOT, STATE, NAMED, KEPT, AHEAD, TAGGED, MEMBER)


@dataclass(frozen=True, slots=True)
class Evicted:
    """A closure that went, named by its root; `reference` is a tag, or the root's digest. Sizes in bytes."""

    root: str
    reason: Reason
    repository: str
    reference: str
    last_use: float
    blobs: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """What a step is to do.

    target: bytes that may stay. until: only what was last used before. cursor: the last root that was looked at.
    spare: closures of which a part is being fetched stay. chosen: these and no others, whatever their age.
    current, rest: the closure that the last step left unfinished, and what is still to be looked at of it.
    cleared: the files that are surely gone by now.
    """

    reason: Reason
    target: int = 0
    until: float = math.inf
    spare: bool = True
    chosen: tuple[str, ...] | None = None
    cursor: tuple[float, str] = FIRST
    current: Evicted | None = None
    rest: tuple[str, ...] = ()
    cleared: tuple[tuple[Digest, int], ...] = ()


@dataclass(slots=True)
class Step:
    """What a step did: closures that are gone whole, files that were moved, usage, and the order for the next step.

    next: None when the order is carried out as far as that is possible.
    """

    usage: Usage
    evicted: list[Evicted] = field(default_factory=list)
    moved: list[tuple[Digest, int]] = field(default_factory=list)
    next: Order | None = None


@dataclass(slots=True)
class Leaving:
    """What goes, and how often that holds each of what it names."""

    digests: set[str] = field(default_factory=set)
    named: Counter[str] = field(default_factory=Counter)


def usage(connection: sqlite3.Connection) -> Usage:
    """Return what is stored and reserved; kept, not counted."""
    return Usage(*connection.execute(USAGE).fetchone())


def step(transaction: Transaction, order: Order, move: Callable[[Digest, int], None], changed: closure.Changed) -> Step:
    """Carry out a part of `order`. `move` takes a file out of its place, under a number; it may raise OSError."""
    connection = transaction.connection
    connection.executemany("DELETE FROM trash WHERE digest = ? AND number = ?", order.cleared)
    order = replace(order, cleared=())
    if order.cursor == FIRST:
        _set_right(connection, time())
        holding.expire(transaction, time())
    deadline = monotonic() + STEP_SECONDS
    done = Step(usage(connection))
    while len(done.moved) < STEP_BLOBS and monotonic() < deadline:
        if order.current is None:
            if done.usage.used <= order.target:
                return done
            picked = _pick(connection, order)
            if picked is None:
                return done
            order = picked
        if order.current is not None:
            order = _advance(transaction, order, done, move, changed)
            done.usage = usage(connection)
    done.next = order
    return done


def doomed(
    connection: sqlite3.Connection, waiting: deque[str], leaving: Leaving, most: int
) -> list[tuple[Digest, int]]:
    """Return up to `most` digests, with sizes, of what nothing needs once `leaving` is gone, from those that wait down.

    Parents come before children. `waiting` keeps what was not looked at, `leaving` grows. Holders are counted, never
    looked up one by one: of a base layer there may be ten thousand.
    """
    found: list[tuple[Digest, int]] = []
    while waiting and len(found) < most:
        digest = waiting.popleft()
        state = None if digest in leaving.digests else connection.execute(STATE, (digest,)).fetchone()
        if state is None:
            continue
        about = {"digest": digest}
        size, holders = state
        if holders > leaving.named[digest] or connection.execute(KEPT, about).fetchone()[0]:
            continue
        named = [child for (child,) in connection.execute(NAMED, about)]
        leaving.digests.add(digest)
        leaving.named.update(named)
        found.append((Digest(digest), size))
        waiting.extend(named)
    return found


def next_root(connection: sqlite3.Connection, order: Order) -> tuple[str, float, bool] | None:
    """Return the first root after the cursor, its last use, and whether it may go by its kind; None at the end."""
    row = connection.execute(ROOT, order.cursor).fetchone()
    if row is None or row[1] >= order.until:
        return None
    return row[0], row[1], order.reason != "orphan" or not row[2]


def newest_use(connection: sqlite3.Connection, root: str) -> tuple[float, bool]:
    """Return when any manifest of a closure was last used, and whether a part of it is being fetched now."""
    about = {"digest": root, "now": time() + AHEAD_SECONDS}
    newest, busy = connection.execute(MANIFESTS_BELOW, about).fetchone()
    return newest or 0.0, bool(busy)


def _set_right(connection: sqlite3.Connection, now: float) -> None:
    """Let what was used while the clock was ahead count as used now: else it would stay until the clock is there."""
    ahead = connection.execute(AHEAD, (now + AHEAD_SECONDS,)).fetchall()
    connection.executemany("UPDATE blob SET last_use = ? WHERE digest = ?", [(now, digest) for (digest,) in ahead])


def _pick(connection: sqlite3.Connection, order: Order) -> Order | None:
    """Return the order with the next root for its current one, or without when that has to stay; None at the end."""
    if order.chosen is not None:
        if not order.chosen:
            return None
        root, *others = order.chosen
        row = connection.execute("SELECT last_use FROM blob WHERE digest = ? AND present", (root,)).fetchone()
        order = replace(order, chosen=tuple(others))
        return order if row is None else _with_root(connection, order, root, row[0])
    found = next_root(connection, order)
    if found is None:
        return None
    root, last_use, meant = found
    order = replace(order, cursor=(last_use, root))
    if not meant:
        return order
    newest, busy = newest_use(connection, root)
    if newest > last_use:
        # A closure is as young as what was used last of it: it takes its place in the index, to be met there.
        connection.execute("UPDATE blob SET last_use = ? WHERE digest = ?", (newest, root))
        return order
    return order if busy and order.spare else _with_root(connection, order, root, last_use)


def _with_root(connection: sqlite3.Connection, order: Order, root: str, last_use: float) -> Order:
    return replace(order, current=describe(connection, root, order.reason, last_use), rest=(root,))


def describe(connection: sqlite3.Connection, root: str, reason: Reason, last_use: float) -> Evicted:
    """Return what a root is called, with nothing evicted of it so far."""
    tagged = connection.execute(TAGGED, (root,)).fetchone()
    if tagged is not None:
        return Evicted(root, reason, tagged[0], tagged[1], last_use)
    member = connection.execute(MEMBER, (root,)).fetchone()
    return Evicted(root, reason, member[0] if member else "", root, last_use)


def _advance(
    transaction: Transaction,
    order: Order,
    done: Step,
    move: Callable[[Digest, int], None],
    changed: closure.Changed,
) -> Order:
    assert order.current is not None
    waiting = deque(order.rest)
    found = doomed(transaction.connection, waiting, Leaving(), STEP_BLOBS - len(done.moved))
    for digest, _ in found:
        closure.lose_blob(transaction, digest, changed)
        number = transaction.stamp()
        transaction.connection.execute("INSERT INTO trash (digest, number) VALUES (?, ?)", (digest, number))
        done.moved.append((digest, number))
        move(digest, number)
    sizes = sum(size for _, size in found)
    current = replace(order.current, blobs=order.current.blobs + len(found), bytes=order.current.bytes + sizes)
    if waiting:
        return replace(order, current=current, rest=tuple(waiting))
    if current.blobs:
        done.evicted.append(current)
    return replace(order, current=None, rest=())
