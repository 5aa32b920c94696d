"""Whether anything still wants a digest, as all records of the fleet say: for the collector of the bucket. Reads only.

A digest is wanted while a repository contains it, or contains a manifest above it. It is garbage once all of that was
removed (`entrepot rm`, in any node) longer than a grace ago; evicting removes nothing. What no record speaks of is not
for us to judge. Manifests that only other nodes have stored have to be learned first: nodes do not exchange edges.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

from proxy.oci.digest import Digest
from proxy.oci.manifests import ParsedManifest
from proxy.store import closure
from proxy.store.writer import Transaction

Standing = Literal["wanted", "garbage", "removed", "unknown"]
"""removed: it will be garbage when its grace is over."""

_ABOVE = """
    WITH RECURSIVE above (digest) AS (
        SELECT :digest UNION SELECT edge.parent FROM above CROSS JOIN edge ON edge.child = above.digest
    )
"""
WANTED = f"""
    {_ABOVE} SELECT 1 FROM above CROSS JOIN membership ON membership.digest = above.digest AND NOT membership.removed
    LIMIT 1
"""
REMOVED = f"""
    {_ABOVE} SELECT max(membership.version) FROM above CROSS JOIN membership ON membership.digest = above.digest
"""
BUSY = f"""
    {_ABOVE} SELECT EXISTS (SELECT 1 FROM above CROSS JOIN intent ON intent.digest = above.digest)
        OR EXISTS (SELECT 1 FROM above CROSS JOIN upload ON upload.digest = above.digest)
"""
UNLEARNED = """
    SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM blob WHERE digest = :digest)
        AND EXISTS (SELECT 1 FROM membership WHERE digest = :digest AND NOT removed)
"""
KIND = "SELECT kind FROM blob WHERE digest = ?"
STATEMENTS = (WANTED, REMOVED, BUSY, UNLEARNED, KIND)


def standing(connection: sqlite3.Connection, digest: Digest, now: float, grace: float) -> Standing:
    """Return how a digest stands `now` (unix time), where what was removed is spared for `grace` seconds."""
    about = {"digest": digest}
    if connection.execute(BUSY, about).fetchone()[0] or connection.execute(WANTED, about).fetchone() is not None:
        return "wanted"
    (version,) = connection.execute(REMOVED, about).fetchone()
    if version is None:
        return "unknown"
    removed_at = (version >> 16) / 1000
    return "garbage" if removed_at < now - grace else "removed"


def is_unlearned(connection: sqlite3.Connection, digest: Digest) -> bool:
    """Tell whether a repository contains the digest, and nothing is known here of what it is."""
    return connection.execute(UNLEARNED, {"digest": digest}).fetchone() is not None


def rank(connection: sqlite3.Connection, digest: Digest) -> int:
    """Return 0 for an index, 1 for what is no index but a manifest, 2 for a blob."""
    found = connection.execute(KIND, (digest,)).fetchone()
    if found is None or found[0] is None:
        return 2
    return 0 if found[0] == "index" else 1


def learn(
    transaction: Transaction,
    digest: Digest,
    size: int,
    parsed: ParsedManifest | None,
    now: float,
    changed: closure.Changed,
) -> None:
    """Record what a verified object is and names, as of a blob that was stored here once and is not any more."""
    known = transaction.connection.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone()
    if known is None:
        closure.record_blob(transaction, digest, size=size, parsed=parsed, public=False, now=now, changed=changed)
        closure.lose_blob(transaction, digest, changed)
