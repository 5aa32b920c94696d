"""Taking over one record that another catalog tells: what it changes here, and what is void because of it.

Which of two records prevails is decided in `exchanged` and, for tags, in `tagstate`. It runs in the writer's thread. A
record that changes something here gets a `seq` of this catalog, so that whoever reads this one hears of it too; one
that changes nothing is not stamped, so that catalogs that all read one another come to rest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store import conflicting, keeping, roots, tagrows, tagstate
from proxy.store.errors import Pinned
from proxy.store.exchanged import MembershipChange, Past, PinChange, TagChange, is_ahead
from proxy.store.tagstate import State, state_of
from proxy.store.writer import Transaction

MOST_NAMED = 1000

KNOWN_MEMBERSHIP = "SELECT version, removed, root FROM membership WHERE repository = ? AND digest = ?"
KNOWN_PIN = "SELECT version, removed FROM pin WHERE repository = ? AND reference = ?"
CHILDREN = "SELECT child FROM edge WHERE parent = ? LIMIT ?"
STATEMENTS = (KNOWN_MEMBERSHIP, KNOWN_PIN, CHILDREN)

_PUT_MEMBERSHIP = """
    INSERT INTO membership (repository, digest, proof, proved_at, version, removed, root, seq)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        proof = CASE WHEN removed THEN excluded.proof ELSE proof END,
        proved_at = CASE WHEN removed THEN excluded.proved_at ELSE proved_at END,
        version = excluded.version, removed = excluded.removed, root = excluded.root, seq = excluded.seq
"""
_PUT_PIN = """
    INSERT INTO pin (repository, reference, created, version, removed, seq) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET created = CASE WHEN removed THEN excluded.created ELSE created END,
        version = excluded.version, removed = excluded.removed, seq = excluded.seq
"""


@dataclass(slots=True)
class Merged:
    """What one step of a merge did.

    done: up to which of the page's records it came. tags, memberships, pins: how many changed something here. refused:
    how many are of a clock that is ahead; refused_from: the least `seq` of those. conflicts: how many were found. The
    rest is void in the caches before the catalog: tags that were something else, memberships that ended, and what those
    named; void_all: that is so much that everything is. moved: answers given before may not be given again.
    """

    done: int
    tags: int = 0
    memberships: int = 0
    pins: int = 0
    refused: int = 0
    refused_from: int | None = None
    conflicts: int = 0
    void_tags: list[tuple[Repository, str]] = field(default_factory=list)
    void_members: list[tuple[Repository, str]] = field(default_factory=list)
    void_named: list[tuple[Repository, str]] = field(default_factory=list)
    void_all: bool = False
    moved: bool = False

    def saw(self, repository: Repository, tag: str) -> None:
        """Note that a tag was found to be something else."""
        self.tags += 1
        self.void_tags.append((repository, tag))
        self.moved = True


def apply(
    transaction: Transaction,
    told: Sequence[tuple[Repository, Sequence[TagChange | MembershipChange]]],
    now: float,
) -> Merged:
    """Take over records that another region told, by repository. Those of a clock ahead are refused.

    A removed manifest takes with it what only it named here, as where it was removed. Raises Pinned: of a removal of
    what is kept here; then nothing of all may be written.
    """
    merged = Merged(0)
    for repository, changes in told:
        for change in changes:
            _apply(transaction, repository, change, now, merged)
    if merged.conflicts:
        conflicting.tidy(transaction, now)
    return merged


def _apply(
    transaction: Transaction,
    repository: Repository,
    change: TagChange | MembershipChange,
    now: float,
    merged: Merged,
) -> None:
    merged.done += 1
    version = newest_version(change)
    if is_ahead(version, now):
        merged.refused += 1
        return
    transaction.learn(version)
    if isinstance(change, TagChange):
        row = transaction.repository(repository)
        known = tagrows.read(transaction.connection, row, change.name)
        merge_tag(transaction, repository, change, now, merged)
        if known is not None and known.state[0].digest is not None:
            _require_kept(transaction, repository, row, change.name)
    elif change.removed:
        _disown(transaction, repository, change, now, merged)
    else:
        merge_membership(transaction, repository, change, now, merged)


def is_news(connection: sqlite3.Connection, repository: int | None, change: TagChange | MembershipChange) -> bool:
    """Tell whether a record would change something here; `repository`: the id of its row, None where it has none."""
    if repository is None:
        return True
    if isinstance(change, TagChange):
        tag = tagrows.read(connection, repository, change.name)
        return tag is None or tagstate.join(tag.state, state_of(change)) != tag.state
    known = connection.execute(KNOWN_MEMBERSHIP, (repository, change.digest)).fetchone()
    return known is None or change.rank > (known[0], not known[1]) or _root(known[2], change.root) != known[2]


def answer(transaction: Transaction, repository: int, record: TagChange) -> None:
    """Let whoever said what is no news here hear of the tag once more, where something may have been cut there."""
    known = tagrows.read(transaction.connection, repository, record.name)
    if known is not None and tagstate.differs(known.state, state_of(record)):
        tagrows.tell_again(transaction, repository, record.name)


def newest_version(change: TagChange | MembershipChange | PinChange) -> int:
    """Return the greatest version that a record tells."""
    if isinstance(change, TagChange) and change.others:
        return max(change.version, *(entry.version for entry in change.others))
    return change.version


def merge_tag(transaction: Transaction, repository: Repository, record: TagChange, now: float, merged: Merged) -> None:
    """Bring what is said of a tag together with what is known of it. Times ahead of `now` are cut to it."""
    row = transaction.repository(repository)
    said = tuple(_cut(entry, now) for entry in state_of(record))
    known = tagrows.read(transaction.connection, row, record.name)
    joined = tagstate.join(known.state if known else (), said)
    if known is not None and joined == known.state:
        if tagstate.differs(joined, said):
            tagrows.tell_again(transaction, row, record.name)
        return
    digest = joined[0].digest
    checks = [min(record.checked_at, now)] if record.digest == digest else []
    checks += [known.checked_at] if known and known.state[0].digest == digest else []
    tagrows.put_heard(transaction, row, record.name, joined, max(checks, default=joined[0].observed_at))
    merged.tags += 1
    if known is not None:
        found = _found(known.state, joined)
        conflicting.note(transaction, row, record.name, joined[0], found, now)
        merged.conflicts += len(found)
        merged.void_tags.append((repository, record.name))
        merged.moved = merged.moved or known.state[0].digest != digest


def merge_membership(
    transaction: Transaction, repository: Repository, record: MembershipChange, now: float, merged: Merged
) -> None:
    """Take over a membership, or its end. What is a root anywhere is one here."""
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_MEMBERSHIP, (row, record.digest)).fetchone()
    root = _root(known[2] if known else None, record.root)
    if known is not None and record.rank <= (known[0], not known[1]):
        if root != known[2]:
            connection.execute(
                "UPDATE membership SET root = ?, seq = ? WHERE repository = ? AND digest = ?",
                (root, transaction.publish(), row, record.digest),
            )
            roots.keep_membership(transaction, row, record.digest, known[0], known[1], root)
            merged.memberships += 1
        return
    proved_at = min(record.proved_at, now)
    connection.execute(
        _PUT_MEMBERSHIP,
        (row, record.digest, record.proof, proved_at, record.version, record.removed, root, transaction.publish()),
    )
    roots.keep_membership(transaction, row, record.digest, record.version, record.removed, root)
    merged.memberships += 1
    if record.removed and known is not None and not known[1]:
        children = () if merged.void_all else connection.execute(CHILDREN, (record.digest, MOST_NAMED + 1))
        _void(merged, repository, [record.digest], [child for (child,) in children])


def merge_pin(transaction: Transaction, repository: Repository, record: PinChange, now: float, merged: Merged) -> None:
    """Take over a pin, or its end."""
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_PIN, (row, record.reference)).fetchone()
    if known is not None and record.rank <= (known[0], not known[1]):
        return
    connection.execute(
        _PUT_PIN,
        (row, record.reference, min(record.created, now), record.version, record.removed, transaction.publish()),
    )
    merged.pins += 1


def _disown(
    transaction: Transaction, repository: Repository, record: MembershipChange, now: float, merged: Merged
) -> None:
    row, connection = transaction.repository(repository), transaction.connection
    known = connection.execute(KNOWN_MEMBERSHIP, (row, record.digest)).fetchone()
    prevails = known is None or record.rank > (known[0], not known[1])
    if known is not None and not known[1] and prevails:
        about = {"row": row, "digest": record.digest}
        pins = [name for (name,) in connection.execute(keeping.PINS_OF_DIGEST, about)]
        if pins:
            raise Pinned(
                f"{repository}@{record.digest} is pinned here ({', '.join(pins)}): unpin it to let it go", pins
            )
    merge_membership(transaction, repository, record, now, merged)
    if prevails:
        gone, named = keeping.disown(transaction, row, Digest(record.digest), record.version)
        _void(merged, repository, gone, named)


def _require_kept(transaction: Transaction, repository: Repository, row: int, name: str) -> None:
    """Raise Pinned for a tag that is kept here and was removed just now."""
    if transaction.connection.execute(keeping.PIN, (row, name)).fetchone() is None:
        return
    known = tagrows.read(transaction.connection, row, name)
    if known is not None and known.state[0].digest is None:
        raise Pinned(f"{repository}:{name} is pinned here: unpin it to let it go", [name])


def _void(merged: Merged, repository: Repository, members: Sequence[str], named: Sequence[str]) -> None:
    merged.void_members += [(repository, digest) for digest in members]
    if not merged.void_all:
        merged.void_named += [(repository, digest) for digest in named]
        merged.void_all = len(merged.void_named) > MOST_NAMED
    merged.moved = True


def _found(known: State, joined: State) -> State:
    """Return the conflicts that were not there before."""
    before = {(entry.digest, entry.version) for entry in tagstate.conflicts(known)}
    return tuple(entry for entry in tagstate.conflicts(joined) if (entry.digest, entry.version) not in before)


def _root(known: str | None, said: str | None) -> str | None:
    return said if known is None else max(known, said or "")


def _cut(entry: Past, now: float) -> Past:
    return entry if entry.observed_at <= now else msgspec.structs.replace(entry, observed_at=now)
