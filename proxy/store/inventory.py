"""What is known, for people: images page by page, one image's tree, and all that speaks for or against a digest.

Nothing here is on the serving path. Every statement searches by an index, but for the walk over all repositories;
memory does not grow with the number of images, and the tree of one image has a bound.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy.oci.digest import Digest
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.platforms import Platform
from proxy.store.catalog import Catalog

PAGE = 200
MAX_NODES = 10_000
SHOWN = 50

State = Literal["complete", "servable", "partial", "absent"]

_SERVABLE = "kind = 'index' AND missing < children"
_STATE = f"""CASE WHEN NOT coalesce(blob.present, 0) THEN 'absent' WHEN blob.missing = 0 THEN 'complete'
    WHEN {_SERVABLE} THEN 'servable' ELSE 'partial' END"""
REPOSITORIES = """
    SELECT id, upstream, path FROM repository WHERE (upstream, path) > (?, ?) ORDER BY upstream, path LIMIT ?
"""
TAGGED = f"""
    SELECT tag.name, tag.digest, tag.media_type, {_STATE}, blob.last_use, tag.observed_at, nullif(tag.origin, ''),
        EXISTS (SELECT 1 FROM pin
            WHERE pin.repository = tag.repository AND pin.reference IN (tag.name, tag.digest) AND NOT pin.removed)
    FROM tag LEFT JOIN blob ON blob.digest = tag.digest
    WHERE tag.repository = ? AND tag.name > ? AND tag.digest IS NOT NULL ORDER BY tag.name LIMIT ?
"""
UNTAGGED = f"""
    SELECT membership.digest, blob.media_type, {_STATE}, blob.last_use, membership.proved_at, NULL,
        EXISTS (SELECT 1 FROM pin
            WHERE pin.repository = membership.repository AND pin.reference = membership.digest AND NOT pin.removed)
    FROM membership CROSS JOIN blob ON blob.digest = membership.digest
    WHERE membership.repository = ? AND membership.digest > ? AND NOT membership.removed
        AND blob.media_type IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM tag
            WHERE tag.digest = membership.digest AND tag.repository = membership.repository)
        AND NOT EXISTS (SELECT 1 FROM edge CROSS JOIN membership AS namer
            ON namer.repository = membership.repository AND namer.digest = edge.parent AND NOT namer.removed
            WHERE edge.child = membership.digest)
    ORDER BY membership.digest LIMIT ?
"""
CLOSURE_SIZE = """
    WITH RECURSIVE closure (digest) AS (
        SELECT :digest UNION SELECT edge.child FROM closure CROSS JOIN edge ON edge.parent = closure.digest
            WHERE edge.required)
    SELECT coalesce(sum(coalesce(blob.size, (SELECT max(size) FROM edge WHERE child = closure.digest))), 0),
        coalesce(sum(CASE WHEN blob.present THEN blob.size END), 0)
    FROM closure LEFT JOIN blob ON blob.digest = closure.digest
"""
NODE = f"""
    SELECT size, media_type, kind, public, present, last_use, stored_at, {_STATE} FROM blob WHERE digest = ?
"""
BRANCHES = f"""
    SELECT edge.child, edge.role, edge.media_type, coalesce(blob.size, edge.size), edge.platform, edge.required,
        {_STATE}
    FROM edge LEFT JOIN blob ON blob.digest = edge.child WHERE edge.parent = ? ORDER BY edge.position
"""
PROOFS = """
    SELECT upstream, path, proof, proved_at FROM membership CROSS JOIN repository
        ON repository.id = membership.repository
    WHERE membership.digest = ? AND NOT membership.removed LIMIT ?
"""
TAGS_AT = """
    SELECT upstream, path, name FROM tag CROSS JOIN repository ON repository.id = tag.repository
    WHERE tag.digest = ? LIMIT ?
"""
PARENTS = "SELECT parent, role FROM edge WHERE child = ? LIMIT ?"
ROOTS = """
    WITH RECURSIVE above (digest) AS (
        SELECT :digest UNION SELECT edge.parent FROM above CROSS JOIN edge ON edge.child = above.digest)
    SELECT upstream, path, name,
        EXISTS (SELECT 1 FROM pin
            WHERE pin.repository = tag.repository AND pin.reference IN (tag.name, tag.digest) AND NOT pin.removed)
    FROM above CROSS JOIN tag ON tag.digest = above.digest CROSS JOIN repository ON repository.id = tag.repository
    LIMIT :limit
"""
MISSING = """
    WITH RECURSIVE lacking (digest, size) AS (
        SELECT :digest, NULL
        UNION SELECT edge.child, edge.size FROM lacking CROSS JOIN edge ON edge.parent = lacking.digest
            LEFT JOIN blob ON blob.digest = edge.child
        WHERE edge.required AND NOT (coalesce(blob.present, 0) AND blob.missing = 0))
    SELECT lacking.digest, lacking.size FROM lacking LEFT JOIN blob ON blob.digest = lacking.digest
    WHERE lacking.size IS NOT NULL AND NOT coalesce(blob.present, 0) LIMIT :limit
"""
TAG = """
    SELECT digest, observed_at, checked_at, denied_at FROM tag
    WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND name = ?
"""
HELD = "SELECT holder, until FROM hold WHERE digest = ? AND until > ? ORDER BY holder LIMIT ?"
PINNED = """
    SELECT created FROM pin
    WHERE repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?) AND reference = ? AND NOT removed
"""
STATEMENTS = (
    REPOSITORIES,
    TAGGED,
    UNTAGGED,
    CLOSURE_SIZE,
    NODE,
    BRANCHES,
    PROOFS,
    TAGS_AT,
    PARENTS,
    ROOTS,
    MISSING,
    HELD,
    TAG,
    PINNED,
)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image: a tag, or a manifest that no tag and no other manifest of the repository names (`tag` None).

    size: bytes of all that it requires, as far as that is known; stored: how many of them are here. last_use: seconds
    since the epoch, None for what was never here. seen: when this was first seen. origin: of a tag, the region that
    saw it as it is, None where that was not noted.
    """

    repository: Repository
    tag: str | None
    digest: str
    media_type: str | None
    state: State
    size: int
    stored: int
    pinned: bool
    last_use: float | None
    seen: float
    origin: str | None


@dataclass(slots=True)
class NodeRecord:
    """One manifest or blob of an image's tree; `size` in bytes. Of a foreign layer nothing is `required`."""

    digest: str
    role: str
    media_type: str
    size: int
    platform: str | None
    required: bool
    state: State
    children: list[NodeRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree of one image. `cut`: it has more than MAX_NODES, which are left out."""

    children: tuple[NodeRecord, ...]
    cut: bool


@dataclass(frozen=True, slots=True)
class TagState:
    """A tag's row; `digest` None is a tombstone, `denied_at` when the upstream last said that there is none."""

    digest: str | None
    observed_at: float
    checked_at: float
    denied_at: float | None


@dataclass(frozen=True, slots=True)
class DigestFacts:
    """What the catalog knows of one digest; every list is cut at SHOWN.

    state None: it never was here. proofs: (repository, proof, when). tags point at it, parents name it: (digest, role).
    roots: the tags in whose closure it is, and whether each is pinned. missing: what its closure lacks, with sizes.
    held: who keeps it from eviction (`holding`), and until when.
    """

    state: State | None = None
    kind: str | None = None
    media_type: str | None = None
    size: int | None = None
    public: bool = False
    last_use: float | None = None
    stored_at: float | None = None
    proofs: tuple[tuple[str, str, float], ...] = ()
    tags: tuple[str, ...] = ()
    parents: tuple[tuple[str, str], ...] = ()
    roots: tuple[tuple[str, bool], ...] = ()
    missing: tuple[tuple[str, int], ...] = ()
    closure: tuple[int, int] = (0, 0)
    held: tuple[tuple[str, float], ...] = ()


class Inventory:
    """Reads of one catalog, in its readers' threads. No state."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def images(
        self, wanted: Callable[[Repository], bool], shown: Callable[[str | None, str], bool]
    ) -> AsyncIterator[list[ImageRecord]]:
        """Give the images of the repositories that are `wanted`, of which `shown` takes (tag, digest), by pages."""
        after = ("", "")
        while True:
            rows = await self._rows(REPOSITORIES, (*after, PAGE))
            for row, upstream, path in rows:
                after = (upstream, path)
                repository = Repository(upstream, path)
                if wanted(repository):
                    async for page in self._of_repository(row, repository, shown):
                        yield page
            if len(rows) < PAGE:
                return

    async def facts(self, digest: Digest) -> DigestFacts:
        """Return what is known of a digest."""
        return await self._catalog.read(lambda connection: _facts(connection, digest))

    async def tree(self, digest: Digest) -> Tree:
        """Return what a manifest is made of, down to its blobs."""
        return await self._catalog.read(lambda connection: _tree(connection, digest))

    async def tag(self, repository: Repository, tag: Tag) -> TagState | None:
        """Return a tag's row, a tombstone's too."""
        rows = await self._rows(TAG, (*repository, tag))
        return TagState(*rows[0]) if rows else None

    async def pinned(self, repository: Repository, reference: Reference) -> bool:
        """Tell whether this very reference is pinned."""
        return bool(await self._rows(PINNED, (*repository, reference)))

    async def _of_repository(
        self, row: int, repository: Repository, shown: Callable[[str | None, str], bool]
    ) -> AsyncIterator[list[ImageRecord]]:
        for statement, width in ((TAGGED, 8), (UNTAGGED, 7)):
            after = ""
            while True:
                found = await self._page(statement, width, row, repository, after, shown)
                if found is None:
                    break
                after, page = found
                if page:
                    yield page

    async def _page(
        self,
        statement: str,
        width: int,
        row: int,
        repository: Repository,
        after: str,
        shown: Callable[[str | None, str], bool],
    ) -> tuple[str, list[ImageRecord]] | None:
        def read(connection: sqlite3.Connection) -> tuple[str, list[ImageRecord]] | None:
            rows = connection.execute(statement, (row, after, PAGE)).fetchall()
            page = []
            for found in rows:
                tag, digest, media_type, state, last_use, seen, origin, pinned = found if width == 8 else (None, *found)
                if shown(tag, digest):
                    size, stored = connection.execute(CLOSURE_SIZE, {"digest": digest}).fetchone()
                    page.append(
                        ImageRecord(
                            repository=repository,
                            tag=tag,
                            digest=digest,
                            media_type=media_type,
                            state=state,
                            size=size,
                            stored=stored,
                            pinned=bool(pinned),
                            last_use=last_use,
                            seen=seen,
                            origin=origin,
                        )
                    )
            return (rows[-1][0], page) if rows else None

        return await self._catalog.read(read)

    async def _rows(self, statement: str, values: Sequence[object]) -> list[Any]:
        return await self._catalog.read(lambda connection: connection.execute(statement, values).fetchall())


def _facts(connection: sqlite3.Connection, digest: Digest) -> DigestFacts:
    def rows(statement: str, *values: object) -> list[Any]:
        return connection.execute(statement, values).fetchall()

    above = {"digest": digest, "limit": SHOWN}
    found = connection.execute(NODE, (digest,)).fetchone()
    size, media_type, kind, public, _, last_use, stored_at, state = found or (None, None, None, 0, 0, None, None, None)
    return DigestFacts(
        state=state,
        kind=kind,
        media_type=media_type,
        size=size,
        public=bool(public),
        last_use=last_use,
        stored_at=stored_at,
        proofs=tuple(
            (f"{upstream}/{path}", proof, when) for upstream, path, proof, when in rows(PROOFS, digest, SHOWN)
        ),
        tags=tuple(f"{upstream}/{path}:{name}" for upstream, path, name in rows(TAGS_AT, digest, SHOWN)),
        parents=tuple((parent, role) for parent, role in rows(PARENTS, digest, SHOWN)),
        roots=tuple(
            (f"{upstream}/{path}:{name}", bool(pinned))
            for upstream, path, name, pinned in connection.execute(ROOTS, above)
        ),
        missing=tuple(connection.execute(MISSING, above).fetchall()),
        closure=tuple(connection.execute(CLOSURE_SIZE, {"digest": digest}).fetchone()),
        held=tuple(rows(HELD, digest, time.time(), SHOWN)),
    )


def _tree(connection: sqlite3.Connection, digest: Digest) -> Tree:
    top: list[NodeRecord] = []
    waiting = [(str(digest), top)]
    count = 0
    while waiting:
        parent, siblings = waiting.pop()
        for child, role, media_type, size, platform, required, state in connection.execute(BRANCHES, (parent,)):
            if count >= MAX_NODES:
                return Tree(tuple(top), cut=True)
            count += 1
            built_for = str(Platform(*json.loads(platform))) if platform else None
            node = NodeRecord(child, role, media_type, size, built_for, bool(required), state)
            siblings.append(node)
            if role == "manifest":
                waiting.append((child, node.children))
    return Tree(tuple(top), cut=False)
