"""Removals that a peer told of: how long they wait, and how many may be carried out at once. Pure, but for two reads.

Only tombstones remove, which `entrepot rm` alone makes: that a peer or its upstream answers nothing, or 401 to
everything, queues nothing here. They wait for the grace, then go together, unless they are too many at once: one image
may always go, and more as long as they are no larger a share of what is known from that peer than was set.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence

from proxy.oci.names import Repository
from proxy.store import keeping
from proxy.store.exchanged import TagChange
from proxy.store.remote import Waiting
from proxy.store.roots import Marks

PAGE = 500

_PEER = "SELECT id, mesh FROM peer WHERE name = ?"
_LIVE = """
    SELECT membership.repository, upstream, path, digest FROM membership
    CROSS JOIN repository ON repository.id = membership.repository
    WHERE (membership.repository, digest) > (?, ?) AND NOT removed AND root IS NOT NULL
        AND membership.repository IN (SELECT repository FROM fingerprint WHERE peer = ? AND records > 0)
    ORDER BY membership.repository, digest LIMIT ?
"""
ROW = "SELECT id FROM repository WHERE upstream = ? AND path = ?"
_SAID = "SELECT 1 FROM root WHERE peer = ? AND place = ?"
TAG_POINTS_TO = """
    SELECT digest FROM tag JOIN repository ON repository.id = tag.repository
    WHERE upstream = ? AND path = ? AND name = ?
"""


def ripe(waiting: Sequence[Waiting], grace: float, now: float) -> list[Waiting]:
    """Return the removals that have waited for `grace` seconds."""
    return [row for row in waiting if row.since + grace <= now]


def refusal(removing: int, live: int, share: float, peer: str) -> str | None:
    """Return why so many images of `live` known ones may not go at once; None: they may."""
    if removing <= 1 or removing <= share * live:
        return None
    percent = round(100 * removing / live) if live else 100
    return (
        f"would remove {removing} of {live} images ({percent} %), more than {share * 100:g} %: "
        f"run `entrepot sync once {peer} --force` if that is meant"
    )


def images_of(connection: sqlite3.Connection, removing: Sequence[Waiting]) -> int:
    """Count the images that removals take: distinct manifests; a tag without its manifest counts as one.

    What is pinned here stays, and counts as none.
    """
    named: set[tuple[Repository, str]] = set()
    for row in removing:
        if _is_pinned(connection, row):
            continue
        if isinstance(row.record, TagChange):
            found = connection.execute(TAG_POINTS_TO, (*row.repository, row.record.name)).fetchone()
            named.add((row.repository, row.record.name if found is None or found[0] is None else found[0]))
        else:
            named.add((row.repository, row.record.digest))
    return len(named)


def _is_pinned(connection: sqlite3.Connection, row: Waiting) -> bool:
    found = connection.execute(ROW, row.repository).fetchone()
    if found is None:
        return False
    if isinstance(row.record, TagChange):
        return connection.execute(keeping.PIN, (found[0], row.record.name)).fetchone() is not None
    about = {"row": found[0], "digest": row.record.digest}
    return connection.execute(keeping.PINS_OF_DIGEST, about).fetchone() is not None


def count_live(connection: sqlite3.Connection, peer: str, enough: float) -> int:
    """Count the images that are known here and that `peer` told of, at least up to `enough`."""
    found = connection.execute(_PEER, (peer,)).fetchone()
    if found is None or found[1] is None:
        return 0
    number, marks = int(found[0]), Marks(bytes(found[1]))
    live = 0
    after: tuple[int, str] = (0, "")
    while live < enough:
        rows = connection.execute(_LIVE, (*after, number, PAGE)).fetchall()
        for _, upstream, path, digest in rows:
            place = marks.place(Repository(upstream, path), f"m:{digest}")
            live += connection.execute(_SAID, (number, place)).fetchone() is not None
        if len(rows) < PAGE:
            break
        after = rows[-1][0], rows[-1][3]
    return live


def refusal_of(connection: sqlite3.Connection, peer: str, waiting: Sequence[Waiting], share: float) -> str | None:
    """Return why the removals that wait of `peer` may not go at once; None: they may."""
    removing = images_of(connection, waiting)
    if removing <= 1:
        return None
    live = count_live(connection, peer, removing / share if share > 0 else math.inf)
    return refusal(removing, live, share, peer)
