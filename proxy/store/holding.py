"""What is kept from eviction by its digest, for a while: what an export or an import needs, and what bundles stand on.

A hold is of one holder: `export:<plan>` and `import:<plan>` while that work goes on, `base:<series>` for what the last
bundle of a series brought, until the next one supersedes it. Holds are this node's own: they are not exchanged. The
functions that change something run in the writer's thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.oci.digest import Digest
from proxy.store.writer import Transaction

FOR_EVER = 1e15
BASE = "base:"

HOLDERS = """
    SELECT holder, count(*), coalesce(sum(blob.size), 0), max(until)
    FROM hold LEFT JOIN blob ON blob.digest = hold.digest AND blob.present GROUP BY holder ORDER BY holder
"""

KEPT = "SELECT holder, count(*) FROM hold WHERE holder >= ? AND holder < ? GROUP BY holder ORDER BY holder"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds so many digests, of which so many bytes are stored; `until` in seconds since the epoch."""

    name: str
    digests: int
    bytes: int
    until: float


def hold(transaction: Transaction, holder: str, digests: Iterable[Digest | str], until: float) -> None:
    """Keep digests, stored or not, from eviction until then; what the holder holds already gets that time too."""
    transaction.connection.executemany(
        "INSERT INTO hold (digest, holder, until) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET until = excluded.until",
        ((digest, holder, until) for digest in digests),
    )


def renew(transaction: Transaction, holder: str, until: float) -> None:
    """Move the end of all that a holder holds."""
    transaction.connection.execute("UPDATE hold SET until = ? WHERE holder = ?", (until, holder))


def turn(transaction: Transaction, holder: str, other: str) -> None:
    """Hold for ever as `other`, and nothing besides, what `holder` held."""
    if holder != other:
        release(transaction, other)
    transaction.connection.execute("UPDATE hold SET holder = ?, until = ? WHERE holder = ?", (other, FOR_EVER, holder))


def release(transaction: Transaction, holder: str) -> int:
    """Let go of all that a holder holds; return how much that was."""
    return transaction.connection.execute("DELETE FROM hold WHERE holder = ?", (holder,)).rowcount


def expire(transaction: Transaction, now: float) -> None:
    """Let go of what was held until before `now`."""
    transaction.connection.execute("DELETE FROM hold WHERE until < ?", (now,))


def bases(found: Iterable[Holder]) -> list[tuple[str, Holder]]:
    """Return the series whose last bundles are held, each with its hold."""
    return [(one.name.removeprefix(BASE), one) for one in found if one.name.startswith(BASE)]


def kept(connection: sqlite3.Connection) -> list[tuple[str, int]]:
    """Return the series whose last bundles are held, each with how many digests; by the index alone."""
    rows = connection.execute(KEPT, (BASE, f"{BASE[:-1]};"))
    return [(name.removeprefix(BASE), digests) for name, digests in rows]


def holders(connection: sqlite3.Connection) -> list[Holder]:
    """Return who holds what, by name."""
    return [Holder(*row) for row in connection.execute(HOLDERS)]
