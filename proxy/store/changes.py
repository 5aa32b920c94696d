"""The small writes of the catalog: tags, proofs, intents, touches. They run in the writer's thread.

What makes manifests whole is in `closure`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Repository, Tag
from proxy.store import eviction, roots, tagrows, tagstate
from proxy.store.errors import NoRoom
from proxy.store.records import Proof, Verified
from proxy.store.touches import Checks, Uses
from proxy.store.writer import Transaction

LATE_SECONDS = 60.0

ROOT = """
    SELECT coalesce((SELECT max(subject) FROM referrer WHERE digest = :digest),
        CASE WHEN NOT EXISTS (SELECT 1 FROM edge WHERE child = :digest) THEN '' END)
    FROM blob WHERE digest = :digest AND media_type IS NOT NULL
"""
UNMARKED = """
    SELECT repository, version FROM membership INDEXED BY membership_digest
    WHERE digest = ? AND root IS NULL AND NOT removed
"""
STATEMENTS = (ROOT, UNMARKED)


def put_tag(transaction: Transaction, repository: Repository, tag: Tag, descriptor: Descriptor, now: float) -> bool:
    """Point a tag at a digest; True when it did not point there before. Only then is anything stamped.

    Whoever sees a digest again that the tag had before says so (see `tagstate`).
    """
    row = transaction.repository(repository)
    known = tagrows.read(transaction.connection, row, tag)
    if known is not None and known.state[0].digest == descriptor.digest:
        transaction.connection.execute(
            "UPDATE tag SET checked_at = ?, denied_at = NULL, pending = NULL, pending_at = NULL "
            "WHERE repository = ? AND name = ?",
            (now, row, tag),
        )
        return False
    version = transaction.version(now)
    state = tagstate.observe(known.state if known else None, descriptor, version, transaction.region, now)
    tagrows.put_seen(transaction, row, tag, state, now)
    return True


def hold_tag(transaction: Transaction, repository: Repository, tag: Tag, pending: Digest, now: float) -> None:
    """Note what a tag was seen to be; when that was seen first stays. Stamped for nobody else."""
    transaction.connection.execute(
        "UPDATE tag SET checked_at = :now, denied_at = NULL, pending = :pending, "
        "pending_at = CASE WHEN pending = :pending AND pending_at <= :now THEN pending_at ELSE :now END "
        "WHERE repository = (SELECT id FROM repository WHERE upstream = :upstream AND path = :path) AND name = :tag",
        {"now": now, "pending": pending, "upstream": repository.upstream, "path": repository.path, "tag": tag},
    )


def deny_tag(transaction: Transaction, repository: Repository, tag: Tag, now: float) -> None:
    """Note that the upstream refused a tag; what this node was told is stamped for nobody else."""
    transaction.connection.execute(
        "UPDATE tag SET denied_at = ?, pending = NULL, pending_at = NULL "
        "WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND name = ?",
        (now, *repository, tag),
    )


def prove(transaction: Transaction, repository: Repository, digest: Digest, proof: Proof, now: float) -> None:
    """Record a membership; the first proof stays. What was removed is proven anew.

    A manifest that is known and that nothing names, or that refers to a subject, is a root, and stays one.
    """
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(
        "SELECT removed, root, version FROM membership WHERE repository = ? AND digest = ?", (row, digest)
    )
    found = known.fetchone()
    if found is not None and not found[0]:
        if found[1] is None:
            _mark_roots(transaction, digest, [(row, found[2])])
        return
    root = _root_of(connection, digest) if found is None or found[1] is None else found[1]
    version = transaction.version(now)
    connection.execute(
        "INSERT INTO membership (repository, digest, proof, proved_at, version, root, seq) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET proof = excluded.proof, proved_at = excluded.proved_at, "
        "version = excluded.version, removed = 0, root = excluded.root, seq = excluded.seq",
        (row, digest, proof, now, version, root, transaction.publish()),
    )
    roots.keep_membership(transaction, row, digest, version, False, root)


def mark_roots(transaction: Transaction, digest: Digest) -> None:
    """Make a manifest that has become known a root in the repositories that were proven to contain it before."""
    members = transaction.connection.execute(UNMARKED, (digest,)).fetchall()
    if members:
        _mark_roots(transaction, digest, members)


def _mark_roots(transaction: Transaction, digest: Digest, members: Sequence[tuple[int, int]]) -> None:
    root = _root_of(transaction.connection, digest)
    if root is None:
        return
    for row, version in members:
        transaction.connection.execute(
            "UPDATE membership SET root = ?, seq = ? WHERE repository = ? AND digest = ?",
            (root, transaction.publish(), row, digest),
        )
        roots.keep_membership(transaction, row, digest, version, False, root)


def _root_of(connection: sqlite3.Connection, digest: Digest) -> str | None:
    found = connection.execute(ROOT, {"digest": digest}).fetchone()
    return None if found is None else found[0]


def add_intent(
    transaction: Transaction,
    digest: Digest,
    size: int | None,
    repository: Repository,
    now: float,
    reserved: int = 0,
    high: int | None = None,
) -> int:
    """Record an intent with the bytes reserved for it; return its generation: `seq` grows, so it does.

    Raises NoRoom when more than `high` bytes would be stored and reserved then.
    """
    _require_room(transaction, digest, reserved, high)
    generation = transaction.stamp()
    transaction.connection.execute(
        "INSERT INTO intent (digest, generation, size, repository, created, reserved) VALUES (?, ?, ?, ?, ?, ?)",
        (digest, generation, size, transaction.repository(repository), now, reserved),
    )
    return generation


def add_intents(transaction: Transaction, blobs: Sequence[Verified], now: float, high: int | None) -> list[int]:
    """Record an intent for each, with its size reserved; return the generations. Raises NoRoom as `add_intent`."""
    sizes = [len(blob.body) for blob in blobs]
    _require_room(transaction, blobs[0].digest, sum(sizes), high)
    return [
        add_intent(transaction, blob.digest, size, blob.repository, now, size)
        for blob, size in zip(blobs, sizes, strict=True)
    ]


def extend_intent(transaction: Transaction, digest: Digest, generation: int, more: int, high: int | None) -> None:
    """Reserve `more` bytes for an attempt that runs. Raises NoRoom."""
    _require_room(transaction, digest, more, high)
    transaction.connection.execute(
        "UPDATE intent SET reserved = reserved + ? WHERE digest = ? AND generation = ?", (more, digest, generation)
    )


def _require_room(transaction: Transaction, digest: Digest, more: int, high: int | None) -> None:
    if high is None:
        return
    used = eviction.usage(transaction.connection).used
    if used + more > high:
        raise NoRoom(
            f"no room for {more} bytes of {digest}: {used} of {high} are taken by what is pinned or under way; "
            "raise the quota, unpin images, or give the data folder a larger volume"
        )


def drop_intent(transaction: Transaction, digest: Digest, generation: int) -> None:
    transaction.connection.execute("DELETE FROM intent WHERE digest = ? AND generation = ?", (digest, generation))


def is_late(check: float, known: float) -> bool:
    """Tell whether what is `known` is newer than a check that waited; what is further ahead is a clock gone back."""
    return check <= known <= check + LATE_SECONDS


def write_touches(transaction: Transaction, uses: Uses, checks: Checks) -> None:
    """Write a batch of last uses and tag checks; neither is a change that others are told of. As `is_late` says."""
    connection = transaction.connection
    connection.executemany(
        "UPDATE blob SET last_use = ? WHERE digest = ? AND (last_use < ? OR last_use > ?)",
        [(now, digest, now, now + eviction.AHEAD_SECONDS) for digest, now in uses.items()],
    )
    connection.executemany(
        "UPDATE tag SET checked_at = ? "
        "WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND name = ? "
        "AND checked_at NOT BETWEEN ? AND ?",
        [(now, *repository, tag, now, now + LATE_SECONDS) for (repository, tag), now in checks.items()],
    )
