"""What an image is made of, and what of it is missing here: manifests from the top down, then what they name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent
from proxy.oci.manifests import MAX_MANIFEST, ParsedManifest, parse_manifest
from proxy.oci.names import Repository
from proxy.oci.platforms import Platform
from proxy.store.catalog import Catalog
from proxy.store.store import Store
from sync.selection import Wanted, described, wanted_children

MAX_DEPTH = 8
MOST_MANIFESTS = 20_000

T = TypeVar("T")
Body = tuple[bytes, str | None]
"""The bytes of a manifest, and the type that it came with."""
Fetch = Callable[[Repository, Digest], Awaitable[Body | None]]
"""Gives manifests; None for one that is not here and is not fetched."""


@dataclass(slots=True)
class Parts:
    """What is wanted of an image. missing: what of it is not here, with sizes in bytes.

    unknown: a manifest is among that, so that there may be more. unmatched: the image has platforms, and none is one
    that is asked for.
    """

    digests: set[Digest] = field(default_factory=set)
    missing: dict[Digest, int] = field(default_factory=dict)
    unknown: bool = False
    unmatched: bool = False

    @property
    def size(self) -> int:
        """The bytes that are missing, as far as is known."""
        return sum(self.missing.values())


async def is_here(catalog: Catalog, repository: Repository, digest: Digest) -> bool:
    """Tell whether a digest is stored, and the repository known to contain it (P43)."""
    record = await catalog.blob(digest)
    if record is None or not record.present:
        return False
    if await catalog.has_membership(repository, digest):
        return True
    return record.public and await catalog.named_in(repository, digest)


async def stored_manifest(catalog: Catalog, store: Store, repository: Repository, digest: Digest) -> Body | None:
    """Return a manifest that is here."""
    record = await catalog.blob(digest)
    if record is None or record.media_type is None or not await is_here(catalog, repository, digest):
        return None
    body = await store.read_blob(digest, MAX_MANIFEST)
    return None if body is None else (body, record.media_type)


async def walk(
    catalog: Catalog,
    repository: Repository,
    top: Digest,
    platforms: Sequence[Platform],
    fetch: Fetch,
) -> Parts:
    """Find out what is wanted of an image. Raises BadContent, and whatever `fetch` does."""
    parts = Parts()
    level = [Descriptor("", top, 0)]
    for depth in range(MAX_DEPTH + 1):
        if not level:
            return parts
        if depth == MAX_DEPTH or len(parts.digests) + len(level) > MOST_MANIFESTS:
            raise BadContent(f"{top} names more manifests than {MOST_MANIFESTS}, or more than {MAX_DEPTH} deep")
        found = await together(_read(repository, one.digest, platforms, fetch) for one in level)
        below: dict[Digest, Descriptor] = {}
        for descriptor, wanted in zip(level, found, strict=True):
            parts.digests.add(descriptor.digest)
            if wanted is None:
                parts.missing[descriptor.digest] = descriptor.size
                parts.unknown = True
                continue
            parts.unmatched = parts.unmatched or wanted.unmatched
            for child in wanted.children:
                digest = child.descriptor.digest
                if child.role == "manifest":
                    if digest not in parts.digests:
                        below[digest] = child.descriptor
                elif digest not in parts.digests:
                    parts.digests.add(digest)
                    if not await is_here(catalog, repository, digest):
                        parts.missing[digest] = child.descriptor.size
        level = list(below.values())
    return parts


async def _read(
    repository: Repository,
    digest: Digest,
    platforms: Sequence[Platform],
    fetch: Fetch,
) -> Wanted | None:
    found = await fetch(repository, digest)
    if found is None:
        return None
    return await asyncio.to_thread(_choose, *found, platforms)


def _choose(body: bytes, media_type: str | None, platforms: Sequence[Platform]) -> Wanted:
    parsed: ParsedManifest = parse_manifest(body, media_type)
    return wanted_children(parsed, platforms, described(body) if platforms and parsed.kind == "index" else {})


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all give; the first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    return [task.result() for task in tasks]


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failed.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
