"""Manifests of the read-through cache, by digest: from the store, or fetched once for all who ask."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass, replace

from proxy.cache.membership import Membership
from proxy.cache.near import Asker, Fleet, Flight, NearManifest
from proxy.cache.negatives import Key, Negatives
from proxy.cache.once import Background, SingleFlight
from proxy.cache.sources import Upstreams
from proxy.cache.turns import Turns, for_a_node
from proxy.oci.descriptor import Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import GatewayTimeout, ManifestUnknown, NotFound, RegistryError, Transient
from proxy.oci.manifests import MAX_MANIFEST, ParsedManifest, parse_manifest
from proxy.oci.names import Repository, Tag
from proxy.oci.terms import Terms
from proxy.store.store import Store

INCOMPLETE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServedManifest(Manifest):
    """A manifest as the cache gives it.

    outcome: hit | joined (a question that another client had begun) | miss | stale. `fresh_for`: seconds for which the
    same answer may be given again without asking the cache. `warning`: what a stale answer says of itself (P16), else
    empty; `age`: how many seconds ago it was confirmed.
    """

    outcome: str = "hit"
    fresh_for: float = 0.0
    warning: str = ""
    age: float = 0.0


class Manifests:
    """Reads manifests for repositories that are known to contain them (P43)."""

    def __init__(
        self,
        store: Store,
        membership: Membership,
        negatives: Negatives,
        upstreams: Upstreams,
        background: Background,
        turns: Turns,
        fleet: Fleet,
    ) -> None:
        self._turns = turns
        self._fleet = fleet
        self._store = store
        self._membership = membership
        self._negatives = negatives
        self._upstreams = upstreams
        self._negotiating: SingleFlight[tuple[Repository, Tag, str], Manifest] = SingleFlight(background)
        self._fetching: SingleFlight[tuple[Repository, Digest], Manifest] = SingleFlight(background)
        self._ensuring: SingleFlight[tuple[Repository, Digest], Manifest] = SingleFlight(background)
        self._for_regions: SingleFlight[tuple[Repository, Digest], NearManifest] = SingleFlight(background)

    async def describe(self, repository: Repository, digest: Digest) -> Descriptor:
        """Return the manifest's descriptor, fetching it if it is not here. Raises as `get`."""
        return (await self.get(repository, digest)).descriptor

    async def get(self, repository: Repository, digest: Digest) -> ServedManifest:
        """Return the manifest.

        Raises ManifestUnknown; Transient when nobody can be asked, or when it is here but its blobs are
        neither here nor within reach (P27).
        """
        stored = await self._stored(repository, digest)
        if stored is not None:
            return stored
        key = (repository, digest)
        outcome = "joined" if key in self._fetching else "miss"
        manifest = await self._negatives.run(
            "manifest", repository, digest, lambda: self._fetching.run(key, lambda: self._fetch(repository, digest))
        )
        return ServedManifest(manifest.descriptor, manifest.body, manifest.anonymous, outcome)

    async def ensure(self, repository: Repository, digest: Digest) -> Manifest:
        """Return the manifest once it is stored, whether its blobs are to be had or not: whoever asks comes for them.

        Nothing that was said before counts. Raises as `get`.
        """
        key = (repository, digest)
        return await self._ensuring.run(key, lambda: self._fetch(repository, digest, whole=False))

    async def negotiate(self, repository: Repository, tag: Tag, accept: str) -> ServedManifest:
        """Return what the upstream has under `tag` for a client that takes `accept` only (P21).

        It is stored under its digest, and the tag is left alone: its answer is everybody else's. Raises as `get`.
        """
        key = (repository, tag, accept)
        outcome = "joined" if key in self._negotiating else "miss"
        manifest = await self._negotiating.run(key, lambda: self._ask_for(repository, tag, accept))
        return ServedManifest(manifest.descriptor, manifest.body, manifest.anonymous, outcome)

    async def for_node(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return the manifest for another node, which judges itself who may have it; `held`: only if it is stored.

        Raises ManifestUnknown; GatewayTimeout where it is not being fetched here, or not in time.
        """
        given = await self._given(repository, digest)
        if given is None and held:
            raise ManifestUnknown(f"{digest} is not stored by this node")
        if given is None:
            async with for_a_node(f"manifest {digest}"), self._turns.turn(digest):
                given = await self._given(repository, digest)
        if given is None:
            raise GatewayTimeout(f"manifest {digest} is not being fetched by this node")
        return given

    async def for_region(self, repository: Repository, digest: Digest, *, held: bool) -> NearManifest:
        """Return the manifest for another region, if the repository contains it (P43); `held`: only if it is stored.

        What nobody here has is asked of the upstream alone, beside whatever else fetches it here: that may wait for
        the very region that asks. Raises ManifestUnknown, Transient.
        """
        given = await self._given(repository, digest) or await self._of_fleet(repository, digest)
        if given is None and held:
            raise ManifestUnknown(f"{digest} is not stored by this region")
        if given is None:
            given = await self._for_regions.run((repository, digest), lambda: self._from_upstream(repository, digest))
        if not given.proven:
            if held:
                raise ManifestUnknown(f"{digest} is not known to be in {repository}")
            await self._membership.stat_manifest(repository, digest)
        if given.servable or self._upstreams.reachable(repository.upstream):  # its blobs are fetched for who asks
            return replace(given, servable=True)
        return replace(given, servable=await self._fleet.has_image(repository, digest, Asker.REGION))

    async def _of_fleet(self, repository: Repository, digest: Digest) -> NearManifest | None:
        """Return what another node, or the bucket, has stored; it is kept where it is proven."""
        for source in await self._fleet.keepers(repository, digest):
            with suppress(RegistryError):
                found = await source.manifest(repository, digest)
                if found.proven:
                    await self._keep(repository, found, shared=True)
                return found
        return None

    async def _from_upstream(self, repository: Repository, digest: Digest) -> NearManifest:
        found = await self._upstreams.ask(
            repository, lambda source: source.manifest(repository, digest), ManifestUnknown
        )
        await self._keep(repository, found)
        return NearManifest(found.descriptor, found.body, found.anonymous, proven=True)

    async def _given(self, repository: Repository, digest: Digest) -> NearManifest | None:
        record = await self._store.catalog.blob(digest)
        if record is None or not record.present or record.media_type is None:
            return None
        body = await self._store.read_blob(digest, MAX_MANIFEST)
        if body is None:
            return None
        self._store.catalog.touch(digest)
        proven = await self._membership.known(repository, digest, record)
        descriptor = Descriptor(record.media_type, digest, len(body))
        return NearManifest(descriptor, body, record.public, proven, record.servable)

    async def _stored(self, repository: Repository, digest: Digest, *, whole: bool = True) -> ServedManifest | None:
        record = await self._store.catalog.blob(digest)
        if record is None or not record.present or record.media_type is None:
            return None
        await self._membership.require_manifest(repository, digest, record)
        if whole and not record.servable:
            await self._require_blobs(repository, digest)
        body = await self._store.read_blob(digest, MAX_MANIFEST)
        if body is None:
            return None
        self._store.catalog.touch(digest)
        fresh_for = math.inf if record.complete else INCOMPLETE_SECONDS
        return ServedManifest(Descriptor(record.media_type, digest, len(body)), body, record.public, "hit", fresh_for)

    async def _require_blobs(self, repository: Repository, digest: Digest) -> None:
        """Raise for a manifest that would leave its client without blobs (P27): somebody must answer for them."""
        if self._upstreams.reachable(repository.upstream) or await self._fleet.has_image(repository, digest):
            return
        await self._membership.stat_manifest(repository, digest)

    async def _fetch(self, repository: Repository, digest: Digest, *, whole: bool = True) -> Manifest:
        """Fetch it once for this node and its fleet: from who is near, else from the upstream.

        whole: not from who has not its blobs while the upstream cannot be asked for them (P27).
        """
        async with self._turns.turn(digest) as waited:
            if waited and (stored := await self._stored(repository, digest, whole=whole)) is not None:
                return stored
            async with self._fleet.flight(digest, repository) as flight:
                manifest: Manifest | None = await self._near(flight, repository, digest, whole)
                if manifest is None:
                    manifest = await self._ask(flight, repository, digest, whole)
                await self._keep(repository, manifest, shared=flight.shared)
                flight.stored()
                return manifest

    async def _ask(self, flight: Flight, repository: Repository, digest: Digest, whole: bool) -> Manifest:
        """Ask the upstream, and where it does not give the manifest those whom the flight has kept for that."""
        try:
            return await self._upstreams.ask(
                repository, lambda source: source.manifest(repository, digest), ManifestUnknown
            )
        except RegistryError as error:
            found = await self._near(flight, repository, digest, whole) if flight.last_resort() else None
            if found is not None:
                return found
            if isinstance(error, NotFound):
                await self._membership.doubt(repository, digest, flight.unheard)
            raise

    async def _near(self, flight: Flight, repository: Repository, digest: Digest, whole: bool) -> NearManifest | None:
        while (source := await flight.next()) is not None:
            try:
                manifest = await source.manifest(repository, digest)
                if not manifest.proven:
                    await self._membership.vouch(repository, digest, manifest.anonymous, manifest=True)
                if flight.following:  # who leads has just had it from the upstream, or has looked after its blobs
                    self._upstreams.heard(repository.upstream, 0.0)
                elif whole and not manifest.servable:
                    await self._require_blobs(repository, digest)
            except RegistryError as error:
                flight.failed(source, error, 0)
            else:
                return manifest
        return None

    async def _ask_for(self, repository: Repository, tag: Tag, accept: str) -> Manifest:
        terms = Terms(accept)
        manifest = await self._upstreams.ask(
            repository,
            lambda source: source.manifest(repository, tag, terms),
            ManifestUnknown,
            elsewhere=(Transient,),
        )
        await self._keep(repository, manifest)
        return manifest

    async def _keep(self, repository: Repository, manifest: Manifest, *, shared: bool = False) -> None:
        """Store a manifest that this repository is proven to contain (P43). `shared`: the fleet has it already."""
        kept = [await asyncio.to_thread(parse_manifest, manifest.body, manifest.descriptor.media_type)]
        await self._store.put_manifest(
            manifest.body,
            parsed=kept[0],
            repository=repository,
            proof=self._upstreams.proof,
            public=manifest.anonymous,
            digest=manifest.descriptor.digest,
            shared=shared,
        )
        # Its children were pushed by now, whatever was said of them before. A thread names them, and frees what was
        # parsed: 20,000 of them take several milliseconds each way.
        self._negatives.forget_all(await asyncio.to_thread(_named, repository, kept))


def _named(repository: Repository, kept: list[ParsedManifest]) -> set[Key]:
    """Take the manifest out of `kept`; return what it names."""
    children = kept.pop().children
    return {("manifest" if one.role == "manifest" else "blob", repository, one.descriptor.digest) for one in children}
