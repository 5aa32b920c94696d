"""What the bucket is still to be given: the queue of uploads in the catalog. Statements only; who uploads is `bucket`.

There is a queue while the catalog names a store (`aim`). A blob enters it in the transaction that records it, and
leaves it once it is uploaded or lost, so that no crash forgets one. A manifest waits until it is servable, and until
what it names is uploaded: what the bucket has of an image can be served. `held`: imported, so that nobody else may have
it; it is not evicted before it is uploaded.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.store.writer import Transaction

WAIT_SECONDS = 300.0
"""After which a manifest that waits for what it names is looked at again, if nothing woke it before."""
STEP = 1000
_STORE = "store"
_CURSOR = "store_queued"

AIMED = "SELECT 1 FROM meta WHERE key = 'store'"
KNOWN = "SELECT present, public FROM blob WHERE digest = ?"
BURIED = "SELECT 1 FROM membership WHERE digest = ? AND removed LIMIT 1"
_READY = """
    blob.media_type IS NULL OR (
        (blob.missing = 0 OR (blob.kind = 'index' AND blob.missing < blob.children))
        AND NOT EXISTS (SELECT 1 FROM edge CROSS JOIN upload AS other ON other.digest = edge.child
            CROSS JOIN blob AS child ON child.digest = edge.child AND child.present AND child.missing = 0
            WHERE edge.parent = blob.digest))
"""
DUE = f"""
    SELECT upload.digest, upload.tries, coalesce(blob.size, 0), blob.media_type, coalesce(blob.public, 0),
        coalesce(blob.present, 0),
        {_READY}
    FROM upload LEFT JOIN blob ON blob.digest = upload.digest
    WHERE next_at <= ? ORDER BY next_at LIMIT ?
"""
BACKLOG = "SELECT count(*), min(since) FROM upload WHERE next_at <= ? OR tries > 0"
WAKE = """
    UPDATE upload SET next_at = :now WHERE +next_at > :now AND tries = 0
        AND digest IN (SELECT parent FROM edge WHERE child = :digest)
"""
_QUEUE = """
    INSERT INTO upload (digest, since, next_at, held) VALUES (:digest, :now, :now, :held)
    ON CONFLICT DO UPDATE SET held = max(held, excluded.held), next_at = min(next_at, excluded.next_at)
"""
_QUEUE_ALL = """
    INSERT INTO upload (digest, since, next_at, held)
    SELECT digest, :now, :now, EXISTS (SELECT 1 FROM membership
        WHERE membership.digest = blob.digest AND proof = 'imported' AND NOT removed)
    FROM blob WHERE present AND digest > :after AND digest <= :until
    ON CONFLICT DO NOTHING
"""
STATEMENTS = (AIMED, KNOWN, BURIED, DUE)


@dataclass(frozen=True, slots=True)
class Job:
    """A blob to be uploaded, after `tries` that failed. present: it is still stored. ready: nothing has to go first."""

    digest: Digest
    tries: int
    size: int
    media_type: str | None
    public: bool
    present: bool
    ready: bool


def aim(transaction: Transaction, store: str | None) -> None:
    """Note which store this catalog's blobs go to, named by a hash of its URL; all of them go to one that is new."""
    connection = transaction.connection
    known = connection.execute("SELECT value FROM meta WHERE key = ?", (_STORE,)).fetchone()
    if (known[0] if known else None) == store:
        return
    connection.execute("DELETE FROM upload")
    connection.execute("DELETE FROM meta WHERE key IN (?, ?)", (_STORE, _CURSOR))
    if store is not None:
        connection.execute("INSERT INTO meta VALUES (?, ?), (?, '')", (_STORE, store, _CURSOR))


def queue_some(transaction: Transaction, now: float) -> bool:
    """Queue some of what was stored before the store was aimed at; False when there is no more."""
    connection = transaction.connection
    cursor = connection.execute("SELECT value FROM meta WHERE key = ?", (_CURSOR,)).fetchone()
    if cursor is None:
        return False
    (until,) = connection.execute(
        "SELECT max(digest) FROM (SELECT digest FROM blob WHERE digest > ? ORDER BY digest LIMIT ?)", (cursor[0], STEP)
    ).fetchone()
    if until is None:
        connection.execute("DELETE FROM meta WHERE key = ?", (_CURSOR,))
        return False
    connection.execute(_QUEUE_ALL, {"now": now, "after": cursor[0], "until": until})
    connection.execute("UPDATE meta SET value = ? WHERE key = ?", (until, _CURSOR))
    return True


def wants(transaction: Transaction, digest: Digest, *, public: bool, shared: bool, imported: bool) -> bool:
    """Tell, before a blob is recorded, whether the bucket is to be given it: it is new here, or newly public.

    shared: it came from the bucket or from a node, which sees to it. What somebody removed is wanted all the same, so
    that the object is renewed before a collector takes it; and what is imported, as nobody else may have it.
    """
    if imported or is_buried(transaction, digest):
        return True
    row = transaction.connection.execute(KNOWN, (digest,)).fetchone()
    if row is not None and row[0] and not (public and not row[1]):
        return False
    return not shared


def is_buried(transaction: Transaction, digest: Digest) -> bool:
    """Tell whether somebody removed it from a repository: a collector may be about to take it."""
    return transaction.connection.execute(BURIED, (digest,)).fetchone() is not None


def recorded(transaction: Transaction, digest: Digest, now: float, *, wanted: bool, held: bool) -> bool:
    """Queue a blob that was recorded, if it is `wanted` and there is a store; look again at what waits for it.

    True when something may be uploaded now.
    """
    connection = transaction.connection
    if connection.execute(AIMED).fetchone() is None:
        return False
    woken = connection.execute(WAKE, {"digest": digest, "now": now}).rowcount
    if wanted:
        connection.execute(_QUEUE, {"digest": digest, "now": now, "held": held})
    return wanted or woken > 0


def due(connection: sqlite3.Connection, now: float, most: int) -> list[Job]:
    """Return what may be looked at now, that which has waited longest first."""
    return [
        Job(Digest(digest), tries, size, media_type, bool(public), bool(present), bool(ready))
        for digest, tries, size, media_type, public, present, ready in connection.execute(DUE, (now, most))
    ]


def next_due(connection: sqlite3.Connection) -> float | None:
    """Return when the next is to be looked at; None when nothing is queued."""
    found = connection.execute("SELECT min(next_at) FROM upload").fetchone()
    return None if found[0] is None else float(found[0])


def backlog(connection: sqlite3.Connection, now: float) -> tuple[int, float]:
    """Return how much is to be uploaded now, and for how many seconds the oldest of it has waited."""
    waiting, since = connection.execute(BACKLOG, (now,)).fetchone()
    return waiting, max(0.0, now - since) if waiting else 0.0


def finished(transaction: Transaction, digest: Digest, now: float, *, public: bool) -> None:
    """Take a blob out of the queue that was uploaded as so public, and look again at what waits for it."""
    transaction.connection.execute(
        "DELETE FROM upload WHERE digest = :digest "
        "AND NOT EXISTS (SELECT 1 FROM blob WHERE digest = :digest AND public > :public)",
        {"digest": digest, "public": public},
    )
    transaction.connection.execute(WAKE, {"digest": digest, "now": now})


def dropped(transaction: Transaction, digest: Digest) -> None:
    """Take a blob out of the queue that is not stored, unless it is again by now."""
    transaction.connection.execute(
        "DELETE FROM upload WHERE digest = :digest "
        "AND NOT EXISTS (SELECT 1 FROM blob WHERE digest = :digest AND present)",
        {"digest": digest},
    )


def gave_up(transaction: Transaction, digest: Digest) -> None:
    """Take a blob out of the queue, as its bytes are wrong."""
    transaction.connection.execute("DELETE FROM upload WHERE digest = ?", (digest,))


def waits(transaction: Transaction, digest: Digest, until: float) -> None:
    """Look at a manifest again at `until`, or when what it waits for is there, unless that is so by now."""
    transaction.connection.execute(
        f"UPDATE upload SET next_at = ? WHERE digest = ? "
        f"AND NOT EXISTS (SELECT 1 FROM blob WHERE blob.digest = upload.digest AND ({_READY}))",
        (until, digest),
    )


def failed(transaction: Transaction, digest: Digest, until: float) -> None:
    """Try a blob again at `until`."""
    transaction.connection.execute("UPDATE upload SET next_at = ?, tries = tries + 1 WHERE digest = ?", (until, digest))
