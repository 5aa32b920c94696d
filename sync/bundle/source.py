"""Bundles as a Source: what is in them is read from where it lies, nothing is extracted.

Bytes of blobs are not verified here, those of manifests are. What a mirror makes of it is `served`'s.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from proxy.oci.descriptor import OCTET_STREAM, Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, ManifestUnknown, NameUnknown, RegistryError, Unavailable
from proxy.oci.listings import Entry, Referrers, TagPage, entry_of, page_of
from proxy.oci.manifests import ParsedManifest, parse_manifest
from proxy.oci.names import Reference, Repository
from proxy.oci.ranges import ByteRange
from proxy.oci.terms import ANY, Terms
from sync.bundle.opened import Bundle, Extent
from sync.bundle.plan import Image
from sync.bundle.reading import BundleBlob, Reading, waited

CHUNK = 1 << 20
CLOSURES = 64
"""Of how many repositories is kept what their images name."""

_Marks = list[bytearray]


@dataclass(slots=True)
class _Held:
    """What the bundles have of one repository: its images, and who has a tag."""

    images: list[tuple[Bundle, Image]] = field(default_factory=list)
    tags: dict[str, tuple[Bundle, Image]] = field(default_factory=dict)


class BundleSource:
    """What several bundles have together. Of a tag that is in more than one, the newest bundle's counts.

    Blobs are read in `threads` (None: the loop's own), `chunk` bytes at once, with one read ahead. State: per
    repository what its images name, worked out in a thread when it is first asked for.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        name: str = "bundle",
        *,
        threads: Executor | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.bundles = tuple(bundles)
        self.reading = Reading(threads)
        self._name = name
        self._chunk = chunk
        self._held = _by_repository(bundles)
        self._closures: OrderedDict[Repository, asyncio.Future[_Marks]] = OrderedDict()
        self._prepared = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def repositories(self) -> list[Repository]:
        """All repositories, sorted by their names."""
        return sorted(self._held, key=str)

    def images(self) -> Iterator[tuple[Bundle, Image]]:
        """Give all images at the top, those that a newer bundle replaces among them."""
        for held in self._held.values():
            yield from held.images

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        return (await self.manifest(repository, reference)).descriptor

    async def manifest(self, repository: Repository, reference: Reference, terms: Terms = ANY) -> Manifest:
        """Return a manifest as `Source` has it; of an image that only a base has, the error names that base."""
        digest = reference
        if not isinstance(digest, Digest):
            tagged = self.tagged(repository, reference)
            if tagged is None:
                raise ManifestUnknown(f"{self._name} has no manifest {reference} in {repository}")
            digest = Digest(tagged[1].digest)
        elif not await self._contains(repository, digest):
            raise self._lacking(repository, digest)
        return await self.reading.run(partial(self._manifest, repository, digest))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        bundle, place, _ = await self._blob(repository, digest)
        return Descriptor(OCTET_STREAM, digest, bundle.plan.blobs[place].size)

    async def open_blob(self, repository: Repository, digest: Digest, span: ByteRange | None = None) -> BundleBlob:
        bundle, place, extents = await self._blob(repository, digest)
        size = bundle.plan.blobs[place].size
        # P6: a span of a zero-length blob is the whole of it.
        part = span.resolve(size) if span is not None and size else (0, size)
        return BundleBlob(self.reading, digest, size, part, extents, self._chunk)

    async def tags(self, repository: Repository, after: str | None, limit: int | None) -> TagPage:
        return page_of(self.names_of_tags(repository), after, limit)

    async def referrers(self, repository: Repository, digest: Digest, artifact_type: str | None) -> Referrers:
        found = self._held.get(repository, _Held()).images
        wanted = sorted({image.digest for _, image in found if image.subject == digest})
        if not wanted:
            return Referrers(()).only(artifact_type)
        entries = await self.reading.run(partial(self._entries, repository, wanted))
        return Referrers(tuple(entries)).only(artifact_type)

    def names_of_tags(self, repository: Repository) -> list[str]:
        """Return the tags of a repository, sorted. Raises NameUnknown."""
        held = self._held.get(repository)
        if held is None:
            raise NameUnknown(f"{self._name} has no repository {repository}")
        return sorted(held.tags)

    def tagged(self, repository: Repository, tag: str) -> tuple[Bundle, Image] | None:
        """Return the image that a tag means, and the bundle that says so."""
        held = self._held.get(repository)
        return None if held is None else held.tags.get(tag)

    def find(self, digest: str) -> tuple[Bundle, int, list[Extent]] | None:
        """Return where all bytes of a blob are: bundle, place in its plan, extents. None: not all are at hand."""
        for bundle, place in self._places(digest):
            extents = bundle.extents(place)
            if extents is not None:
                return bundle, place, extents
        return None

    def parsed(self, digest: Digest) -> ParsedManifest | None:
        """Return what a manifest is, None where it is not at hand, or none. For threads. Raises Unavailable."""
        found = self.find(digest)
        media_type = None if found is None else found[0].plan.blobs[found[1]].media_type
        if found is None or media_type is None:
            return None
        try:
            return parse_manifest(self._body(digest, found[2]), media_type)
        except Unavailable:
            raise
        except RegistryError:
            return None

    async def problems(self) -> list[str]:
        """Return in words which volumes cannot be read now."""
        volumes = [volume for bundle in self.bundles for volume in bundle.volumes.values()]
        return await self.reading.run(partial(self.reading.failing, volumes))

    def _prepare(self) -> None:
        """Let the bundles reckon where everything is, which takes long for large ones. For threads."""
        for bundle in self.bundles:
            bundle.place("")
            for cut in bundle.plan.volumes:
                if cut.blob < len(bundle.plan.blobs):
                    bundle.extents(cut.blob)
        self._prepared = True

    def _places(self, digest: str) -> Iterator[tuple[Bundle, int]]:
        for bundle in self.bundles:
            place = bundle.place(digest)
            if place is not None:
                yield bundle, place

    async def _blob(self, repository: Repository, digest: Digest) -> tuple[Bundle, int, list[Extent]]:
        if not await self._contains(repository, digest):
            raise BlobUnknown(f"{self._name} has no blob {digest} in {repository}")
        found = self.find(digest)
        if found is None:
            lost = next((bundle for bundle, _ in self._places(digest)), self.bundles[0])
            raise Unavailable(f"blob {digest} of {repository} is not at hand: {missing(lost)}")
        return found

    async def _contains(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether a repository has what one of its images names, or the plan says it has (P43)."""
        if repository not in self._held:
            return False
        if not self._prepared:
            await self.reading.run(self._prepare)
        places = list(self._places(digest))
        if not places:
            return False
        if any(bundle.plan.names[bundle.plan.blobs[place].repository] == repository for bundle, place in places):
            return True
        marks = await self._marks(repository)
        numbers = {id(bundle): number for number, bundle in enumerate(self.bundles)}
        return any(marks[numbers[id(bundle)]][place] for bundle, place in places)

    async def _marks(self, repository: Repository) -> _Marks:
        working = self._closures.get(repository)
        if working is None:
            working = self._closures[repository] = self.reading.begin(partial(self._closure, self._held[repository]))
            if len(self._closures) > CLOSURES:
                self._closures.popitem(last=False)
        self._closures.move_to_end(repository)
        try:
            return await waited(working)
        except RegistryError:
            if self._closures.get(repository) is working:
                del self._closures[repository]
            raise

    def _closure(self, held: _Held) -> _Marks:
        """Return, for each bundle, which places of its plan the images of a repository name. Raises Unavailable."""
        marks = [bytearray(len(bundle.plan.blobs)) for bundle in self.bundles]
        waiting = [image.digest for _, image in held.images]
        while waiting:
            digest = waiting.pop()
            fresh = False
            for bundle, mark in zip(self.bundles, marks, strict=True):
                place = bundle.place(digest)
                if place is not None and not mark[place]:
                    mark[place] = 1
                    fresh = fresh or bundle.plan.blobs[place].media_type is not None
            parsed = self.parsed(Digest(digest)) if fresh else None
            if parsed is not None:
                waiting += [child.descriptor.digest for child in parsed.children]
        return marks

    def _manifest(self, repository: Repository, digest: Digest) -> Manifest:
        found = self.find(digest)
        media_type = None if found is None else found[0].plan.blobs[found[1]].media_type
        if found is None or media_type is None:
            raise self._lacking(repository, digest)
        body = self._body(digest, found[2])
        return Manifest(Descriptor(parse_manifest(body, media_type).media_type, digest, len(body)), body)

    def _body(self, digest: Digest, extents: Sequence[Extent]) -> bytes:
        body = self.reading.whole(extents)
        if Digest.of(body, digest.algorithm) != digest:
            places = " and ".join(extent.file.label for extent in extents)
            raise BadContent(f"manifest {digest} in {places} is damaged: its bytes are not those of its digest")
        return body

    def _entries(self, repository: Repository, digests: Sequence[str]) -> list[Entry]:
        entries = []
        for digest in map(Digest, digests):
            if self.find(digest) is None:
                continue  # its base has it
            manifest = self._manifest(repository, digest)
            parsed = parse_manifest(manifest.body, manifest.descriptor.media_type)
            entries.append(entry_of(manifest.descriptor, parsed.artifact_type, manifest.body))
        return entries

    def _lacking(self, repository: Repository, digest: Digest) -> ManifestUnknown:
        lost = next((bundle for bundle, _ in self._places(digest)), None)
        if lost is not None:
            return ManifestUnknown(f"manifest {digest} of {repository} is not at hand: {missing(lost)}")
        for bundle, image in self._held.get(repository, _Held()).images:
            if image.digest == digest:
                return ManifestUnknown(f"manifest {digest} of {repository} is not in the bundle: {missing(bundle)}")
        return ManifestUnknown(f"{self._name} has no manifest {digest} in {repository}")


def missing(bundle: Bundle) -> str:
    """Return in words where what a bundle does not have at hand must be: volumes, the bases of a thin bundle."""
    words = []
    if bundle.missing:
        numbers = ", ".join(map(str, bundle.missing))
        words.append(f"of {len(bundle.plan.volumes)} volumes these are missing: {numbers}")
    if bundle.plan.requires:
        labels = ", ".join(base.label for base in bundle.plan.bases) or "another bundle"
        words.append(f"it is thin and stands on {labels}")
    return "; ".join(words) or "a part of it is missing or damaged"


def _by_repository(bundles: Sequence[Bundle]) -> dict[Repository, _Held]:
    found: dict[Repository, _Held] = {}
    for bundle in sorted(bundles, key=lambda one: one.plan.created):
        for name in bundle.plan.names:
            found.setdefault(name, _Held())
        for image in bundle.plan.images:
            held = found[bundle.plan.names[image.repository]]
            held.images.append((bundle, image))
            if image.tag is None:
                continue
            before = held.tags.get(image.tag.name)
            if before is None or _age(before) <= (bundle.plan.created, image.tag.version):
                held.tags[image.tag.name] = (bundle, image)
    return found


def _age(named: tuple[Bundle, Image]) -> tuple[int, int]:
    bundle, image = named
    return bundle.plan.created, 0 if image.tag is None else image.tag.version
