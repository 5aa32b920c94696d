"""What people decide about images: pins, their end, and removal. The writes; they run in the writer's thread.

Removing drops what a repository says, never bytes: those go when nothing needs them any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.oci.names import Reference, Repository, Tag
from proxy.store import roots, tagrows, tagstate
from proxy.store.writer import Transaction

_ROW = "(SELECT id FROM repository WHERE upstream = ? AND path = ?)"
PIN = "SELECT reference FROM pin WHERE repository = ? AND reference = ? AND NOT removed"
PINS_OF_DIGEST = """
    WITH RECURSIVE above (digest) AS (
        SELECT :digest UNION SELECT edge.parent FROM above CROSS JOIN edge ON edge.child = above.digest
            CROSS JOIN membership ON membership.repository = :row AND membership.digest = edge.parent
            AND NOT membership.removed)
    SELECT pin.reference FROM above CROSS JOIN pin ON pin.repository = :row AND pin.reference = above.digest
        AND NOT pin.removed
    UNION ALL
    SELECT pin.reference FROM above CROSS JOIN tag ON tag.digest = above.digest AND tag.repository = :row
        CROSS JOIN pin ON pin.repository = :row AND pin.reference = tag.name AND NOT pin.removed
"""
TAGS_OF_DIGEST = "SELECT name FROM tag WHERE digest = :digest AND repository = :row"
UNNEEDED = """
    SELECT child FROM edge CROSS JOIN membership ON membership.repository = :row AND membership.digest = edge.child
    WHERE edge.parent = :digest AND NOT membership.removed
        AND NOT EXISTS (SELECT 1 FROM tag WHERE tag.digest = edge.child AND tag.repository = :row)
        AND NOT EXISTS (SELECT 1 FROM pin WHERE pin.repository = :row AND pin.reference = edge.child
            AND NOT pin.removed)
        AND NOT EXISTS (SELECT 1 FROM edge AS other CROSS JOIN membership AS namer
            ON namer.repository = :row AND namer.digest = other.parent AND NOT namer.removed
            WHERE other.child = edge.child)
"""
CHILDREN = "SELECT child FROM edge WHERE parent = ?"
MEMBER = "SELECT root, version FROM membership WHERE repository = ? AND digest = ? AND NOT removed"
OWNER = "SELECT 1 FROM membership WHERE digest = ? AND NOT removed LIMIT 1"
STATEMENTS = (PIN, PINS_OF_DIGEST, TAGS_OF_DIGEST, UNNEEDED, CHILDREN, MEMBER, OWNER)


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed. `pins`: references that forbid it; then nothing was.

    digests: those that lost their membership. unowned: those of them that are in no other repository either.
    """

    pins: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    unowned: tuple[str, ...] = ()


def pin(transaction: Transaction, repository: Repository, reference: Reference, now: float) -> bool:
    """Keep what `reference` is, also when a tag moves; True when it was not pinned before."""
    cursor = transaction.connection.execute(
        "INSERT INTO pin (repository, reference, created, version, seq) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
        "SET created = excluded.created, version = excluded.version, removed = 0, seq = excluded.seq WHERE removed",
        (transaction.repository(repository), reference, now, transaction.version(now), transaction.publish()),
    )
    return cursor.rowcount > 0


def unpin(transaction: Transaction, repository: Repository, reference: Reference, now: float) -> bool:
    """Let eviction have it again (a tombstone takes its place); False when it was not pinned."""
    cursor = transaction.connection.execute(
        f"UPDATE pin SET removed = 1, version = ?, seq = ? WHERE repository = {_ROW} AND reference = ? AND NOT removed",
        (transaction.version(now), transaction.publish(), *repository, reference),
    )
    return cursor.rowcount > 0


def remove(
    transaction: Transaction,
    repository: Repository,
    reference: Reference,
    now: float,
    forget: Callable[[Removal, list[str]], None],
) -> Removal:
    """Remove a tag (a tombstone takes its place) or a digest with the tags that point to it.

    With a digest goes the repository's membership of it, and of what nothing else in the repository names. Nothing is
    removed when it, or what it is a part of, is pinned. `forget` is called after the commit with the removal and all
    that was named by it.
    """
    connection = transaction.connection
    found = connection.execute("SELECT id FROM repository WHERE upstream = ? AND path = ?", repository).fetchone()
    if found is None:
        return Removal()
    row = int(found[0])
    if isinstance(reference, Tag):
        pins = tuple(name for (name,) in connection.execute(PIN, (row, reference)))
        removal = Removal(pins) if pins else Removal(tags=_bury(transaction, row, [str(reference)], now))
        transaction.on_commit(lambda: forget(removal, []))
        return removal
    about = {"row": row, "digest": reference}
    pins = tuple(name for (name,) in connection.execute(PINS_OF_DIGEST, about))
    if pins:
        return Removal(pins)
    tags = _bury(transaction, row, [name for (name,) in connection.execute(TAGS_OF_DIGEST, about)], now)
    gone, named = disown(transaction, row, reference, transaction.version(now))
    unowned = [digest for digest in gone if connection.execute(OWNER, (digest,)).fetchone() is None]
    removal = Removal(tags=tags, digests=tuple(gone), unowned=tuple(unowned))
    transaction.on_commit(lambda: forget(removal, named))
    return removal


def _bury(transaction: Transaction, row: int, names: list[str], now: float) -> tuple[str, ...]:
    """Make tombstones: no digest, a version of their own, so that every region hears of it."""
    buried = []
    for name in names:
        known = tagrows.read(transaction.connection, row, name)
        if known is not None and known.state[0].digest is not None:
            state = tagstate.observe(known.state, None, transaction.version(now), transaction.region, now)
            tagrows.put_seen(transaction, row, name, state, now)
            buried.append(name)
    return tuple(buried)


def disown(transaction: Transaction, row: int, top: Digest, version: int) -> tuple[list[str], list[str]]:
    """Bury the memberships of `top` and, below it, of what no other member names; return them, and all they named.

    All get the `version` of the removal, wherever and however late it is carried out: a root that was proven since then
    stays. What is no root goes all the same, as nothing names it. `top` may be buried already.
    """
    connection = transaction.connection
    gone: list[str] = []
    named: list[str] = []
    waiting = [str(top)]
    while waiting:
        digest = waiting.pop()
        found = connection.execute(MEMBER, (row, digest)).fetchone()
        if digest != top and (found is None or (found[0] is not None and found[1] >= version)):
            continue
        if found is not None:
            buried = max(version, found[1] + 1)
            transaction.learn(buried)
            connection.execute(
                "UPDATE membership SET removed = 1, version = ?, seq = ? WHERE repository = ? AND digest = ?",
                (buried, transaction.publish(), row, digest),
            )
            roots.keep_membership(transaction, row, digest, buried, True, found[0])
            gone.append(digest)
        named += [child for (child,) in connection.execute(CHILDREN, (digest,))]
        waiting += [child for (child,) in connection.execute(UNNEEDED, {"row": row, "digest": digest})]
    return gone, named
