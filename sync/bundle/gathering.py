"""What an import has to know beforehand: read from the catalog by its own statements, and from manifests at hand.

Reads only. What follows from it is `preflight`'s.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice

from proxy.oci.digest import Digest
from proxy.oci.errors import RegistryError
from proxy.oci.manifests import parse_manifest
from proxy.store import tagrows
from proxy.store.evict import limits
from proxy.store.store import Store
from proxy.store.tagstate import State
from sync.bundle.errors import Damaged
from sync.bundle.opened import Bundle
from sync.bundle.plan import Plan
from sync.bundle.preflight import Contents, Facts, Room, digests_of

AT_ONCE = 2000

HERE = """
    SELECT blob.digest, public FROM json_each(?) AS asked CROSS JOIN blob ON blob.digest = asked.value WHERE present
"""
MEMBERS = """
    SELECT membership.digest FROM json_each(?) AS asked CROSS JOIN membership
    ON membership.repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?)
        AND membership.digest = asked.value AND NOT removed
"""
EDGES = """
    SELECT edge.parent, blob.kind, edge.child, edge.required FROM json_each(?) AS asked
    CROSS JOIN blob ON blob.digest = asked.value AND blob.present AND blob.media_type IS NOT NULL
    CROSS JOIN edge ON edge.parent = blob.digest
"""
TOUCHED = """
    SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM blob WHERE digest = value AND present)
        OR EXISTS (SELECT 1 FROM intent WHERE digest = value)
"""
IMPORTED = "SELECT 1 FROM imported WHERE plan = ?"
ROW = "SELECT id FROM repository WHERE upstream = ? AND path = ?"
KEPT = """
    WITH RECURSIVE kept (digest) AS (
        SELECT digest FROM hold
        UNION SELECT reference FROM pin WHERE NOT removed
        UNION SELECT tag.digest FROM pin CROSS JOIN tag ON tag.repository = pin.repository AND tag.name = pin.reference
            WHERE NOT pin.removed
        UNION SELECT digest FROM intent
        UNION SELECT digest FROM upload WHERE held
        UNION SELECT value FROM json_each(:asked)
        UNION SELECT edge.child FROM kept CROSS JOIN blob ON blob.digest = kept.digest AND blob.present
            CROSS JOIN edge ON edge.parent = blob.digest
        UNION SELECT referrer.subject FROM kept CROSS JOIN blob ON blob.digest = kept.digest AND blob.present
            CROSS JOIN referrer ON referrer.digest = blob.digest
    )
    SELECT coalesce(sum(blob.size), 0) FROM kept CROSS JOIN blob ON blob.digest = kept.digest AND blob.present
"""
RESERVED = """
    SELECT coalesce(sum(reserved), 0) FROM intent WHERE digest NOT IN (SELECT value FROM json_each(?))
"""


async def gather(
    store: Store,
    bundle: Bundle,
    now: float,
    *,
    vouched: bool,
    quota: int | None,
    promised: Set[str] = frozenset(),
) -> Facts:
    """Look around for an import of the bundle. promised: digests that bundles before it bring.

    Raises Damaged for a manifest that is not what the plan says, CatalogError, OSError.
    """
    plan, catalog = bundle.plan, store.catalog
    here, public = await catalog.read(lambda connection: read_here(connection, digests_of(plan)))
    members = frozenset() if vouched else await catalog.read(lambda connection: _members_of_required(connection, plan))
    contents = await catalog.read(lambda connection: read_contents(connection, here))
    unread = [at for at, blob in enumerate(plan.blobs) if blob.media_type is not None and blob.digest not in contents]
    contents.update(await asyncio.to_thread(_read_manifests, bundle, unread))
    tags = await catalog.read(lambda connection: _read_tags(connection, plan))
    room = await _room(store, bundle, here, quota)
    imported = await catalog.read(lambda connection: _imported(connection, plan, bundle.name))
    return Facts(
        now=now,
        vouched=vouched,
        here=here | promised,
        public=public | promised,
        members=members,
        tags=tags,
        contents=contents,
        room=room,
        imported=imported,
    )


def read_here(connection: sqlite3.Connection, digests: Sequence[Digest]) -> tuple[set[str], set[str]]:
    """Return which of the digests are stored, and which of those are public."""
    here: set[str] = set()
    public: set[str] = set()
    for asked in _asked(digests):
        for digest, is_public in connection.execute(HERE, (asked,)):
            here.add(digest)
            if is_public:
                public.add(digest)
    return here, public


def read_untouched(connection: sqlite3.Connection, digests: Sequence[Digest]) -> set[str]:
    """Return which of the digests are neither stored nor being stored."""
    begun = {digest for asked in _asked(digests) for (digest,) in connection.execute(TOUCHED, (asked,))}
    return {str(digest) for digest in digests} - begun


def read_contents(connection: sqlite3.Connection, digests: Iterable[str]) -> dict[str, Contents]:
    """Return what those of the digests name that are stored manifests with children."""
    found: dict[str, tuple[bool, list[tuple[str, bool]]]] = {}
    for asked in _asked(digests):
        for parent, kind, child, required in connection.execute(EDGES, (asked,)):
            found.setdefault(parent, (kind == "index", []))[1].append((child, bool(required)))
    return {digest: Contents(index, tuple(children)) for digest, (index, children) in found.items()}


def read_members(connection: sqlite3.Connection, repository: tuple[str, str], digests: Iterable[str]) -> set[str]:
    """Return which of the digests the repository is proven to contain."""
    found: set[str] = set()
    for asked in _asked(digests):
        found.update(digest for (digest,) in connection.execute(MEMBERS, (asked, *repository)))
    return found


def _members_of_required(connection: sqlite3.Connection, plan: Plan) -> frozenset[tuple[int, str]]:
    wanted = [one.digest for one in plan.requires]
    places = range(len(plan.names)) if wanted else ()
    return frozenset((at, one) for at in places for one in read_members(connection, plan.names[at], wanted))


def _imported(connection: sqlite3.Connection, plan: Plan, name: Digest) -> bool:
    if connection.execute(IMPORTED, (name,)).fetchone() is None:
        return False
    wanted: dict[int, list[str]] = {}
    for image in plan.images:
        wanted.setdefault(image.repository, []).append(image.digest)
    return all(
        len(read_members(connection, plan.names[at], digests)) == len(set(digests)) for at, digests in wanted.items()
    )


def _read_tags(connection: sqlite3.Connection, plan: Plan) -> Mapping[int, State]:
    rows: dict[int, int | None] = {}
    found: dict[int, State] = {}
    for at, image in enumerate(plan.images):
        if image.tag is None:
            continue
        if image.repository not in rows:
            row = connection.execute(ROW, plan.names[image.repository]).fetchone()
            rows[image.repository] = None if row is None else row[0]
        repository = rows[image.repository]
        known = None if repository is None else tagrows.read(connection, repository, image.tag.name)
        if known is not None:
            found[at] = known.state
    return found


def _read_manifests(bundle: Bundle, places: Sequence[int]) -> dict[str, Contents]:
    found = {}
    for at in places:
        body = read_blob(bundle, at)
        if body is not None:
            blob = bundle.plan.blobs[at]
            found[blob.digest] = contents_of(body, blob.media_type, f"{blob.digest} of {bundle.plan.series}")
    return found


def read_blob(bundle: Bundle, at: int) -> bytes | None:
    """Return a blob's bytes, which fit its digest; None where a part of it is not at hand. Blocks. Raises Damaged."""
    extents = bundle.extents(at)
    if extents is None:
        return None
    digest = Digest(bundle.plan.blobs[at].digest)
    body = b"".join(extent.file.read(extent.offset, extent.size) for extent in extents)
    if Digest.of(body, digest.algorithm) != digest:
        labels = ", ".join(dict.fromkeys(extent.file.label for extent in extents))
        raise Damaged(f"{labels}: the bytes of {digest} are not what the plan says; copy the volume again")
    return body


def contents_of(body: bytes, media_type: str | None, what: str) -> Contents:
    """Return what a manifest names. Takes some 15 ms for 1 MiB. Raises Damaged for what is none."""
    try:
        parsed = parse_manifest(body, media_type)
    except RegistryError as error:
        raise Damaged(f"{what} is no manifest that can be taken over: {error.message}") from None
    children = ((str(child.descriptor.digest), child.required) for child in parsed.children)
    return Contents(parsed.kind == "index", tuple(children))


async def _room(store: Store, bundle: Bundle, here: Set[str], quota: int | None) -> Room:
    def read(connection: sqlite3.Connection) -> tuple[int, int]:
        asked = json.dumps(digests_of(bundle.plan))
        (kept,) = connection.execute(KEPT, {"asked": asked}).fetchone()
        (reserved,) = connection.execute(RESERVED, (asked,)).fetchone()
        return int(kept), int(reserved)

    kept, reserved = await store.catalog.read(read)
    volume, usage = await store.volume(), await store.catalog.usage()
    high = limits(quota, volume, usage.stored).high
    staged = await asyncio.to_thread(lambda: sum(to_be_staged(bundle, here)))
    return Room(max(0, high - kept - reserved), staged)


def to_be_staged(bundle: Bundle, here: Set[str]) -> Iterator[int]:
    """Yield the sizes of the slices of the volumes at hand that have to be set aside until the others come."""
    plan = bundle.plan
    at_hand: dict[int, bool] = {}
    for part in plan.slices:
        if plan.blobs[part.blob].digest in here or (part.blob, part.offset) in bundle.staged:
            continue
        if part.blob not in at_hand:
            at_hand[part.blob] = bundle.extents(part.blob) is not None
        if not at_hand[part.blob] and _volume_of(plan, part.blob, part.offset) in bundle.volumes:
            yield part.size


def _volume_of(plan: Plan, blob: int, offset: int) -> int:
    """Return the number of the volume that has the byte of a cut blob."""
    number = 0
    for cut in plan.volumes:
        if (cut.blob, cut.offset) > (blob, offset):
            break
        number += 1
    return number


def _asked(digests: Iterable[str]) -> Iterator[str]:
    """Yield the digests in lists of bounded length, as the statements take them."""
    rest = iter(digests)
    while some := list(islice(rest, AT_ONCE)):
        yield json.dumps(some)
