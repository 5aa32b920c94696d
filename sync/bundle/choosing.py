"""Choosing what goes into a bundle, and pulling what is missing of it through the cache. What a plan is, is `making`'s.

References are asked for as a client would; what the catalog knows is taken as it is. An image that cannot be had whole
is left out and named, and the others go on.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from proxy.cache.listings import ServedReferrers, ServedTags
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, ManifestUnknown, NotFound, RegistryError
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.platforms import Platform
from proxy.oci.references import format_full
from proxy.store.inventory import ImageRecord
from proxy.store.store import Store
from sync.bundle.making import Manifest, Top, closure, created_of, manifest_of
from sync.bundle.plan import tagged_of
from sync.fetching import BLOBS_AT_ONCE, IMAGES_AT_ONCE, Fetcher, Filler, words_of
from sync.selection import described, refers_to, wanted_children
from sync.walking import MAX_DEPTH, MOST_MANIFESTS, Body, is_here, together

ROUNDS = 5
"""How far referrers of referrers are followed."""
MAX_CONFIG = 4 << 20
_PAGE = 5000
_BATCH = 64
_PROVEN = """
    SELECT 1 FROM blob CROSS JOIN membership ON membership.digest = blob.digest AND NOT membership.removed
        AND membership.repository = (SELECT id FROM repository WHERE upstream = ? AND path = ?)
    WHERE blob.digest = ? AND blob.present
"""

T = TypeVar("T")


class Cache(Filler, Protocol):
    """The part of the cache that choosing needs."""

    async def manifest(self, repository: Repository, reference: Reference) -> object: ...

    def forget_missing(self, repository: Repository, reference: Reference) -> None: ...

    async def referrers(self, repository: Repository, digest: Digest, artifact_type: str | None) -> ServedReferrers: ...

    async def tags(self, repository: Repository, after: str | None, limit: int | None) -> ServedTags: ...


class Lacking(msgspec.Struct, frozen=True):
    """What could not be had, and why."""

    what: str
    error: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. known: images of the catalog; no `platforms`: all of them. offline: no upstream is asked.

    pulling: blobs are pulled, not only counted.
    """

    references: Sequence[tuple[Repository, Reference]]
    known: Sequence[ImageRecord] = ()
    platforms: tuple[Platform, ...] = ()
    referrers: bool = True
    offline: bool = False
    pulling: bool = True


@dataclass(slots=True)
class Chosen:
    """What goes into a bundle. missing: blobs that are not here and were not to be pulled, with their sizes.

    lacking: what was asked for and could not be had.
    """

    tops: list[Top] = field(default_factory=list)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    lacking: list[Lacking] = field(default_factory=list)


Hold = Callable[[Sequence[str]], Awaitable[None]]
"""Keeps digests from eviction, from before they are pulled on."""
Told = Callable[[int, int, str], None]
"""Hears of so many of so many things that are done, and of which kind."""


async def choose(store: Store, cache: Cache, wish: Wish, hold: Hold, told: Told) -> Chosen:
    """Return what a wish comes to, with everything of it in the store (unless it is only counted)."""
    choosing = _Choosing(store, cache, wish, hold, told)
    await choosing.run()
    return choosing.chosen


async def newest_config(store: Store, chosen: Chosen) -> int:
    """Return when the newest image was made, by the configs: seconds since the epoch, 0 where none says."""
    configs = {
        part.digest
        for top in chosen.tops
        for digest, _, role in closure(chosen.manifests, top.digest)
        if role == "manifest" and chosen.manifests[digest].kind == "image"
        for part in chosen.manifests[digest].parts
        if part.role == "config" and part.wanted
    }
    newest = 0

    async def look(digest: str) -> None:
        nonlocal newest
        body = await store.read_blob(Digest(digest), MAX_CONFIG)
        if body is not None:
            newest = max(newest, created_of(body))

    await at_once(BLOBS_AT_ONCE, configs, look)
    return newest


class _Choosing:
    """State: what was found so far; which manifests of which repository were walked."""

    def __init__(self, store: Store, cache: Cache, wish: Wish, hold: Hold, told: Told) -> None:
        self._store = store
        self._catalog = store.catalog
        self._cache = cache
        self._wish = wish
        self._hold = hold
        self._told = told
        self._fetcher = Fetcher(store.catalog, store, cache)
        self._tops: dict[tuple[str, str], Top] = {}
        self._walked: dict[tuple[Repository, Digest], None] = {}
        self._about: dict[Repository, dict[Digest, list[Tag]]] = {}
        self._unlisted: set[Repository] = set()
        self._failed: set[tuple[str, str]] = set()
        self.chosen = Chosen()

    async def run(self) -> None:
        wish = self._wish
        self._told(0, len(wish.references), "images")
        done = itertools.count(1)

        async def asked(one: tuple[Repository, Reference]) -> None:
            await self._reference(*one)
            self._told(next(done), len(wish.references), "images")

        await at_once(IMAGES_AT_ONCE, wish.references, asked)
        await at_once(IMAGES_AT_ONCE, wish.known, self._record)
        if wish.referrers:
            await self._referrers()
        await self._blobs()
        self.chosen.tops = [top for top in self._tops.values() if self._is_whole(top)]

    async def _reference(self, repository: Repository, reference: Reference) -> None:
        """Take a reference as a client would ask for it."""

        async def take() -> None:
            if isinstance(reference, Digest):
                await self._add(repository, reference)
                return
            self._cache.forget_missing(repository, reference)
            await self._cache.manifest(repository, reference)
            await self._tag(repository, reference)

        await self._or_lacking(format_full(repository, reference), take())

    async def _record(self, record: ImageRecord) -> None:
        """Take an image of the catalog."""
        repository = record.repository
        if record.tag is None:
            if record.state != "absent":
                name = format_full(repository, Digest(record.digest))
                await self._or_lacking(name, self._add(repository, Digest(record.digest), known=True))
            return
        tag = Tag(record.tag)
        if self._wish.referrers or refers_to(tag) is None:
            await self._or_lacking(format_full(repository, tag), self._tag(repository, tag))

    async def _tag(self, repository: Repository, tag: Tag) -> None:
        """Take what the catalog says a tag is."""
        change = await self._catalog.tag_change(repository, tag)
        if change is None or change.digest is None:
            raise ManifestUnknown(f"the tag {tag} of {repository} is not known here")
        await self._walk(repository, Digest(change.digest))
        self._tops[str(repository), tag] = Top(str(repository), change.digest, tagged_of(change))

    async def _add(self, repository: Repository, digest: Digest, *, known: bool = False) -> None:
        await self._walk(repository, digest)
        if known and not self._wish.referrers and self.chosen.manifests[digest].subject is not None:
            return
        self._tops[str(repository), digest] = Top(str(repository), str(digest))

    async def _or_lacking(self, what: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (RegistryError, OSError) as error:
            self._lack(what, error)

    def _lack(self, what: str, error: Exception) -> None:
        self.chosen.lacking.append(Lacking(what, words_of(error)))

    async def _walk(self, repository: Repository, top: Digest) -> None:
        """Read the manifests of an image, from the top down. Raises RegistryError, OSError."""
        level, depth = [top], 0
        seen = {top}
        while level:
            if depth > MAX_DEPTH or len(seen) > MOST_MANIFESTS:
                raise BadContent(f"{top} names more manifests than {MOST_MANIFESTS}, or more than {MAX_DEPTH} deep")
            await together(self._read(repository, digest) for digest in level)
            below = []
            for parent in level:
                for part in self.chosen.manifests[parent].parts:
                    if part.wanted and part.role == "manifest" and part.digest not in seen:
                        below.append(Digest(part.digest))
                        seen.add(Digest(part.digest))
            level, depth = below, depth + 1
        wanted = [digest for digest, _, _ in closure(self.chosen.manifests, top)]
        await self._hold(wanted)

    async def _read(self, repository: Repository, digest: Digest) -> None:
        if (repository, digest) in self._walked:
            return
        body, _ = await self._fetcher.manifest(repository, digest)
        if digest not in self.chosen.manifests:
            self.chosen.manifests[digest] = await asyncio.to_thread(read_manifest, body, self._wish.platforms)
        self._walked[repository, digest] = None

    async def _referrers(self) -> None:
        """Take what refers to the images, to what they are made of, and to those in turn."""
        asked: set[tuple[Repository, Digest]] = set()
        for _ in range(ROUNDS):
            new = [one for one in self._walked if one not in asked]
            if not new:
                return
            asked.update(new)
            await at_once(IMAGES_AT_ONCE, new, self._referring)
            self._told(len(asked), len(self._walked), "manifests asked for referrers")

    async def _referring(self, subject: tuple[Repository, Digest]) -> None:
        repository, digest = subject
        for found in await self._listed(repository, digest):
            if (repository, found) not in self._walked:
                name = format_full(repository, found)
                await self._or_lacking(f"{name}, which refers to {digest}", self._add(repository, found))
        if repository not in self._about:
            self._about[repository] = await self._tags_about(repository)
        for tag in self._about[repository].get(digest, ()):
            if (str(repository), tag) not in self._tops:
                await self._reference(repository, tag)

    async def _listed(self, repository: Repository, digest: Digest) -> list[Digest]:
        found = {one.digest: None for one, _ in await self._catalog.list_referrers(repository, digest)}
        if not self._wish.offline:
            try:
                listed = await self._cache.referrers(repository, digest, None)
                found |= {Digest.parse(str(entry["digest"])): None for entry in listed.manifests}
                if listed.warning:
                    self._unlist(repository, f"of {digest}: {listed.warning}")
            except NotFound:
                pass
            except RegistryError as error:
                self._unlist(repository, f"of {digest}: {words_of(error)}")
        return sorted(found)

    async def _tags_about(self, repository: Repository) -> dict[Digest, list[Tag]]:
        """Return the tags of a repository that are about an image, by its digest."""
        names: dict[str, None] = {}
        after: str | None = None
        while page := await self._catalog.list_tags(repository, after, _PAGE):
            names |= dict.fromkeys(map(str, page))
            after = page[-1]
        if not self._wish.offline:
            try:
                names |= dict.fromkeys((await self._cache.tags(repository, None, None)).tags)
            except NotFound:
                pass
            except RegistryError as error:
                self._unlist(repository, f"by tag: {words_of(error)}")
        about: dict[Digest, list[Tag]] = {}
        for name in sorted(names):
            digest = refers_to(name)
            if digest is not None:
                about.setdefault(digest, []).append(Tag(name))
        return about

    def _unlist(self, repository: Repository, error: str) -> None:
        """Note, once for a repository, that its referrers may be more than were found."""
        if repository not in self._unlisted:
            self._unlisted.add(repository)
            self.chosen.lacking.append(Lacking(f"the list of referrers in {repository}", error))

    async def _blobs(self) -> None:
        """Pull what is missing of everything that was walked, or count it."""
        total = sum(1 for _ in self._wanted())
        done = itertools.count(1)

        async def bring(repository: Repository, digest: str, size: int) -> None:
            if not self._wish.pulling:
                if not await is_here(self._catalog, repository, Digest(digest)):
                    self.chosen.missing[digest] = size
                return
            try:
                await self._fetcher.blob(repository, Digest(digest))
            except (RegistryError, OSError) as error:
                self._failed.add((str(repository), digest))
                self._lack(f"blob {digest} of {repository}", error)

        async def settle(one: tuple[tuple[Repository, str, int], bool]) -> None:
            wanted, is_proven = one
            if not is_proven:
                await bring(*wanted)
            self._told(next(done), total, "blobs")

        async def look(wanted: Sequence[tuple[Repository, str, int]]) -> None:
            here = await self._catalog.read(partial(_proven, wanted))
            await at_once(BLOBS_AT_ONCE, zip(wanted, here, strict=True), settle)

        await at_once(BLOBS_AT_ONCE, _batches(self._wanted()), look)

    def _wanted(self) -> Iterator[tuple[Repository, str, int]]:
        """Yield what the manifests name that is no manifest, once for each repository."""
        last: tuple[Repository, set[str]] | None = None
        for repository, digest in sorted(self._walked):
            if last is None or last[0] != repository:
                last = repository, set()
            for part in self.chosen.manifests[digest].parts:
                if part.wanted and part.role != "manifest" and part.digest not in last[1]:
                    last[1].add(part.digest)
                    yield repository, part.digest, part.size

    def _is_whole(self, top: Top) -> bool:
        if not self._failed:
            return True
        whole = not any(
            (top.repository, digest) in self._failed for digest, _, _ in closure(self.chosen.manifests, top.digest)
        )
        if not whole:
            name = f"{top.repository}{'@' + top.digest if top.tag is None else ':' + top.tag.name}"
            self.chosen.lacking.append(Lacking(name, "left out, as not all of its blobs could be had"))
        return whole


def read_manifest(body: Body, platforms: Sequence[Platform]) -> Manifest:
    """Return what a manifest is and what of it is wanted. Raises RegistryError: none of the platforms is in it."""
    data, media_type = body
    parsed = parse_manifest(data, media_type)
    if parsed.kind != "index" or not platforms:
        return manifest_of(parsed, len(data))
    wanted = wanted_children(parsed, platforms, described(data))
    if wanted.unmatched:
        offered = ", ".join(sorted({str(child.platform) for child in parsed.children if child.platform}))
        raise ManifestUnknown(f"there is no image for {', '.join(map(str, platforms))}; there are {offered}")
    return manifest_of(parsed, len(data), {str(child.descriptor.digest) for child in wanted.children})


def _proven(wanted: Sequence[tuple[Repository, str, int]], connection: sqlite3.Connection) -> list[bool]:
    """Tell of each whether it is stored, and its repository proven to contain it (P43)."""
    return [
        connection.execute(_PROVEN, (*repository, digest)).fetchone() is not None for repository, digest, _ in wanted
    ]


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch


async def at_once(count: int, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do `work` for all items, `count` at a time; the first failure ends it and is raised as itself."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    await together(worker() for _ in range(count))
