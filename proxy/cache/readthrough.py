"""The cache as a Source over Sources: what the server, prefetch and commands read from."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from metrics.events import Emit
from proxy.cache.blobs import Blobs, NodeBlob
from proxy.cache.fill import Arriving, FillStatus
from proxy.cache.flights import PATIENCE_SECONDS, Flights
from proxy.cache.listings import Listings, ServedReferrers, ServedTags
from proxy.cache.manifests import Manifests, ServedManifest
from proxy.cache.membership import Membership
from proxy.cache.near import Alone, Apart, Asker, Fleet, Kind, NearManifest, Regions, TagSaid
from proxy.cache.negatives import Negatives
from proxy.cache.once import Background
from proxy.cache.reader import FileReader
from proxy.cache.regional import RegionalFleet
from proxy.cache.sources import Upstreams
from proxy.cache.tags import Revalidated, TagPolicy, Tags
from proxy.cache.turns import Turns
from proxy.oci.descriptor import Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import NotFound, RegistryError, Unavailable
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.ranges import ByteRange
from proxy.oci.terms import ANY, Terms
from proxy.source import BlobStream, Source
from proxy.store.exchanged import TagChange
from proxy.store.records import Proof
from proxy.store.store import Store

ANSWER_SECONDS = 9.0


class ReadThrough:
    """A Source whose answers come from the store where they can. Make it with `open_cache`.

    No answer takes longer than `ANSWER_SECONDS` (P26): what was begun goes on, the caller hears Unavailable.
    """

    name = "cache"

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        background: Background,
        executor: ThreadPoolExecutor,
        emit: Emit,
        policy: Callable[[str], TagPolicy],
        patience: float,
        fleet: Fleet,
        regions: Regions,
    ) -> None:
        self._catalog = store.catalog
        self._background = background
        self._upstreams = upstreams
        self._negatives = negatives = Negatives(lambda upstream: policy(upstream).negative_ttl, fleet=fleet)
        membership = Membership(store.catalog, negatives, upstreams, background)
        self._flights = Flights(store, background, executor, emit, fleet, membership.vouch, upstreams.proof, patience)
        self._blobs = Blobs(store, self._flights, membership, negatives, upstreams, fleet)
        turns = Turns(store)
        self._manifests = Manifests(store, membership, negatives, upstreams, background, turns, fleet)
        self._tags = Tags(
            store.catalog, self._manifests, negatives, upstreams, background, emit, policy, turns, fleet, regions
        )
        self._listings = Listings(store, upstreams, background, policy)

    @property
    def moves(self) -> int:
        """Another number whenever a tag has moved or a blob was lost: answers kept from before are void."""
        return self._catalog.moves

    def used(self, digest: Digest) -> None:
        """Note that a kept answer was given again: who got a manifest comes for its blobs, so both are to stay."""
        self._catalog.touch(digest)

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        return (await self.manifest(repository, reference)).descriptor

    async def manifest(self, repository: Repository, reference: Reference, terms: Terms = ANY) -> ServedManifest:
        async with _answering(f"{repository} {reference}"):
            if isinstance(reference, Tag):
                return await self._tags.get(repository, reference, terms)
            return await self._manifests.get(repository, reference)

    async def refresh(self, repository: Repository, tag: Tag) -> Revalidated:
        """Ask the upstream where the tag points now. Raises ManifestUnknown, Transient."""
        async with _answering(f"{repository}:{tag}"):
            return await self._tags.refresh(repository, tag)

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        async with _answering(digest):
            return await self._blobs.stat(repository, digest)

    async def open_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None = None
    ) -> FileReader | BlobStream:
        async with _answering(digest):
            return await self._blobs.open(repository, digest, span)

    async def tags(self, repository: Repository, after: str | None, limit: int | None) -> ServedTags:
        async with _answering(f"the tags of {repository}"):
            return await self._listings.tags(repository, after, limit)

    async def referrers(self, repository: Repository, digest: Digest, artifact_type: str | None) -> ServedReferrers:
        async with _answering(f"the referrers of {repository}@{digest}"):
            return await self._listings.referrers(repository, digest, artifact_type)

    async def repositories(self, after: str | None, limit: int) -> list[str]:
        """Return up to `limit` names of repositories that the catalog knows, upstream and all (P15)."""
        async with _answering("the repositories"):
            return await self._catalog.list_repositories(after, limit)

    async def node_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        """Open a blob for another node; see `Blobs.for_node`."""
        async with _answering(digest):
            return await self._blobs.for_node(repository, digest, span, held=held)

    async def node_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return a manifest for another node; see `Manifests.for_node`."""
        async with _answering(digest):
            return await self._manifests.for_node(repository, digest, held=held)

    async def node_tag(self, repository: Repository, tag: Tag) -> TagSaid:
        """Return where a tag points, for another node that waits for this one's question; see `Tags.for_node`."""
        async with _answering(f"{repository}:{tag}"):
            return await self._tags.for_node(repository, tag)

    async def region_blob(
        self, repository: Repository, digest: Digest, span: ByteRange | None, *, held: bool
    ) -> NodeBlob:
        """Open a blob for another region; see `Blobs.for_region`."""
        async with _answering(digest):
            return await self._blobs.for_region(repository, digest, span, held=held)

    async def region_manifest(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return a manifest for another region; see `Manifests.for_region`."""
        async with _answering(digest):
            return await self._manifests.for_region(repository, digest, held=held)

    async def region_tag(self, repository: Repository, tag: Tag, max_age: float = math.inf) -> tuple[TagChange, float]:
        """Return a tag's record and the age of its last confirmation, for another region; see `Tags.for_region`."""
        async with _answering(f"{repository}:{tag}"):
            return await self._tags.for_region(repository, tag, max_age)

    def leave(self, digest: Digest) -> None:
        """End a download that nobody reads or waits for; what has come is kept for the next one."""
        self._flights.leave(digest)

    async def ensure_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Return the manifest once it is in the store, its blobs or not, however long that takes."""
        return await self._manifests.ensure(repository, digest)

    async def ensure_blob(self, repository: Repository, digest: Digest) -> int:
        """Return the blob's size in bytes once it is in the store, however long that takes."""
        return await self._blobs.ensure(repository, digest)

    def take_up_interrupted(self, asker: Asker = Asker.CLIENT) -> None:
        """Go on in the background with the fills that a crash or a shutdown has interrupted, one after the other."""
        if not self._upstreams.offline:
            self._background.create_task(self._take_up(asker), name="take up interrupted fills")

    async def _take_up(self, asker: Asker) -> None:
        for intent in await self._catalog.intents():
            try:
                await self._blobs.take_up(intent.repository, intent.digest, asker)
            except RegistryError:
                continue

    def arriving(self, digest: Digest) -> Arriving | None:
        """Return how far the running download of a digest is; None where there is none."""
        fill = self._flights.running(digest)
        return None if fill is None else fill.arriving

    async def idle(self) -> None:
        """Return when no fill is under way."""
        await self._flights.idle()

    def forget_missing(self, repository: Repository, reference: Reference) -> None:
        """Forget that the upstream did not have a manifest: whoever asks next has it asked again."""
        self._negatives.forget_all({("manifest", repository, reference)})

    def said_missing(self, repository: Repository, reference: Reference) -> str | None:
        """Return what the upstream said of a manifest or blob that it does not have, while that is remembered."""
        kinds: tuple[Kind, ...] = ("manifest", "blob")
        for kind in kinds:
            try:
                self._negatives.check(kind, repository, reference)
            except NotFound as error:
                return error.message
        return None

    def running(self) -> list[FillStatus]:
        """Return the fills that are under way."""
        return self._flights.statuses()


@asynccontextmanager
async def _answering(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except TimeoutError as error:
        raise Unavailable(f"no answer about {what} in {ANSWER_SECONDS:.0f} s; it goes on, ask again") from error
    except OSError as error:
        raise Unavailable(f"the store cannot answer about {what}: {error.strerror or error}") from error


@asynccontextmanager
async def open_cache(
    store: Store,
    sources: Mapping[str, Sequence[Source]],
    *,
    emit: Emit,
    policy: Callable[[str], TagPolicy] = lambda upstream: TagPolicy(),
    reachable: Callable[[str], bool] = lambda upstream: True,
    offline: bool = False,
    patience: float = PATIENCE_SECONDS,
    fleet: Fleet | None = None,
    regions: Regions | None = None,
    proof: Proof = Proof.FETCHED,
) -> AsyncIterator[ReadThrough]:
    """Run a cache over `sources` (by upstream name, the main one first) for as long as the context lasts.

    `fleet` are those who are near, `regions` those who are far. `proof`: what it proves that a source gave something.
    On leaving, fills under way are ended and their spools kept.
    """
    executor = ThreadPoolExecutor(4, thread_name_prefix="fill")
    upstreams = Upstreams(sources, offline=offline, reachable=reachable, proof=proof)
    try:
        async with Background() as background:
            near = fleet or Alone()
            if regions is not None:
                near = RegionalFleet(near, regions)
            far = regions or Apart()
            cache = ReadThrough(store, upstreams, background, executor, emit, policy, patience, near, far)
            yield cache
    finally:
        executor.shutdown()
