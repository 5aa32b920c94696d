"""Tags: how fresh an answer is, when the upstream is asked again, and when a stale answer will do (P44).

    younger than tag_ttl          served without asking
    older                         one HEAD for all who ask, waited for up to a second; while it takes longer,
                                  the old answer serves within stale_while_revalidate (after 6 s: stale_if_error)
    upstream failed (network,     the old answer serves, with a Warning, within stale_if_error
      5xx, 429) or offline
    upstream said 401, 403, 404   that is the answer; the old one is never served
    asked with no-cache           as older than tag_ttl, at most once a second
    moved within its cooldown     the last digest that matured (see `cooldown`)
    home is another region        that one is asked instead of the upstream (see `homes`)

A client that does not take the cached answer's type gets what the upstream has for its own Accept (P21); the tag
stays as it is. A tag moves only after the new manifest is in the store, so it never points to what cannot be served.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from metrics.events import Emit, TagRevalidated
from proxy.cache.cooldown import decide, matures_in
from proxy.cache.homes import Certain, Heard, cooldown_of, described
from proxy.cache.manifests import Manifests, ServedManifest
from proxy.cache.membership import Unheard
from proxy.cache.near import Fleet, Regions, TagFlight, TagSaid
from proxy.cache.negatives import Negatives
from proxy.cache.once import Background, SingleFlight
from proxy.cache.sources import Upstreams
from proxy.cache.turns import Turns, for_a_node, tag_key
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import (
    Denied,
    GatewayTimeout,
    ManifestUnknown,
    NotFound,
    RegistryError,
    TooManyRequests,
    Transient,
    Unavailable,
)
from proxy.oci.names import Repository, Tag
from proxy.oci.terms import ANY, Terms
from proxy.source import Source
from proxy.store.catalog import Catalog, Proof, TagRecord
from proxy.store.exchanged import TagChange

PROMPT_SECONDS = 1.0
PATIENT_SECONDS = 6.0
STALE_SECONDS = 1.0
JUST_SECONDS = 5.0
AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TagPolicy:
    """How long an upstream's answers about tags are believed, in seconds. `stale_if_error` None: for ever.

    `negative_ttl` is for its 404 answers, blobs' too. `cooldown`: how long a new digest must have been seen.
    `frugal`: its pull quota is used up, no manifest is fetched that can be done without (P35).
    """

    ttl: float = 900.0
    stale_while_revalidate: float = 86400.0
    stale_if_error: float | None = None
    negative_ttl: float = 30.0
    cooldown: float = 0.0
    frugal: bool = False


@dataclass(frozen=True, slots=True)
class Revalidated:
    """What a question about a tag brought. outcome: unchanged | moved | new | held.

    `before` and `now`: the digests that the tag was and is served as; `pending`: what waits for its cooldown.
    """

    outcome: str
    before: Digest | None
    now: Digest
    pending: Digest | None = None


class Tags:
    """Answers for tags. `policy` gives an upstream's TagPolicy by its name; `now` is unix time in seconds."""

    def __init__(
        self,
        catalog: Catalog,
        manifests: Manifests,
        negatives: Negatives,
        upstreams: Upstreams,
        background: Background,
        emit: Emit,
        policy: Callable[[str], TagPolicy],
        turns: Turns,
        fleet: Fleet,
        regions: Regions,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._turns = turns
        self._fleet = fleet
        self._regions = regions
        self._certain = Certain()
        self._catalog = catalog
        self._manifests = manifests
        self._negatives = negatives
        self._upstreams = upstreams
        self._emit = emit
        self._policy = policy
        self._now = now
        self._asking: SingleFlight[tuple[Repository, Tag, bool], Revalidated] = SingleFlight(background)
        self._own: SingleFlight[tuple[Repository, Tag], None] = SingleFlight(background)

    async def get(self, repository: Repository, tag: Tag, terms: Terms = ANY) -> ServedManifest:
        """Return the manifest that the tag points to, on a client's `terms`. Raises ManifestUnknown, Transient."""
        served = await self._get(repository, tag, terms.max_age)
        if terms.excludes(served.descriptor.media_type):
            return await self._manifests.negotiate(repository, tag, terms.accept)
        return served

    async def refresh(self, repository: Repository, tag: Tag) -> Revalidated:
        """Ask the upstream now, whatever is remembered; a cooldown counts nevertheless. Raises as `get`."""
        self._upstreams.of(repository)
        self._negatives.forget("manifest", repository, tag)
        return await self._asking.run((repository, tag, True), lambda: self._revalidate(repository, tag, 0.0))

    async def for_node(self, repository: Repository, tag: Tag) -> TagSaid:
        """Return where the tag points, for another node that counts on this one to ask. Raises GatewayTimeout."""
        async with for_a_node(f"{repository}:{tag}"), self._turns.turn(tag_key(repository, tag)):
            record = await self._catalog.tag(repository, tag)
        if record is None or record.gone or record.pending or not 0 <= self._age(record) <= JUST_SECONDS:
            raise GatewayTimeout(f"{repository}:{tag} was not confirmed to this node just now")
        return TagSaid(record.descriptor, "", self._age(record))

    async def for_region(self, repository: Repository, tag: Tag, max_age: float) -> tuple[TagChange, float]:
        """Return the tag's record and the seconds since the upstream's main host confirmed it to this process.

        It is asked now where that is longer ago than `ttl`, or `max_age`, at most once a second. Raises
        ManifestUnknown, Transient: this region is not sure.
        """
        ttl = self._policy(repository.upstream).ttl
        wanted, just_asked = min(ttl, max(max_age, AGAIN_SECONDS)), max(ttl, JUST_SECONDS)
        for is_asked, most in ((True, wanted), (False, just_asked)):
            record = await self._catalog.tag(repository, tag)
            if record is None or record.gone:
                break
            age = self._certain.age(repository, tag, record.pending or record.digest)
            change = await self._catalog.tag_change(repository, tag)
            if age is not None and age <= most and change is not None:
                return change, age
            if is_asked:
                await self._own.run((repository, tag), lambda: self._confirm(repository, tag))
        raise Unavailable(f"{repository}:{tag} is not confirmed by the upstream of this region")

    async def _confirm(self, repository: Repository, tag: Tag) -> None:
        """Ask the upstream alone where the tag points: who waits for this may be whom `_revalidate` would ask."""
        record = await self._catalog.tag(repository, tag)
        heard = await self._ask_upstream(repository, tag)
        await self._move(repository, tag, record, heard)

    async def _get(self, repository: Repository, tag: Tag, max_age: float) -> ServedManifest:
        policy = self._policy(repository.upstream)
        record = await self._catalog.tag(repository, tag)
        if record is not None and record.gone:
            record = None
        most = min(max_age, policy.ttl)
        if record is not None and self._fresh_for(record, policy, max_age) > 0:
            try:
                return await self._serve(repository, record, policy)
            except (ManifestUnknown, Unheard):
                record, most = None, 0.0  # neither stored nor upstream any more: has the tag moved?
        if self._upstreams.offline:
            return await self._stale(repository, record, Unavailable(f"{repository}:{tag} is not cached"), policy)
        if record is None:
            self._negatives.check("manifest", repository, tag, max_age)
        question = (repository, tag, most < policy.ttl)
        outcome = "joined" if question in self._asking else "miss"
        asking = self._asking.start(question, lambda: self._revalidate(repository, tag, most))
        if record is not None:
            prompt = max_age == math.inf and self._age(record) <= policy.ttl + policy.stale_while_revalidate
            await asyncio.wait([asking], timeout=PROMPT_SECONDS if prompt else PATIENT_SECONDS)
            if not asking.done():
                slow = Unavailable(f"upstream {repository.upstream} does not answer about {repository}:{tag}")
                return await self._stale(repository, record, slow, policy)
        try:
            await asyncio.shield(asking)
        except Transient as error:
            return await self._stale(repository, record, error, policy)
        renewed = await self._catalog.tag(repository, tag)
        if renewed is None:
            raise ManifestUnknown(f"{repository}:{tag} is unknown")
        served = await self._serve(repository, renewed, policy)
        unchanged = record is not None and record.descriptor.digest == renewed.descriptor.digest
        return served if unchanged else replace(served, outcome=outcome)

    async def _revalidate(self, repository: Repository, tag: Tag, max_age: float) -> Revalidated:
        """Find out where the tag points, from what was heard in this node or fleet at most `max_age` seconds ago."""
        async with self._turns.turn(tag_key(repository, tag)) as waited:
            record = await self._catalog.tag(repository, tag)
            if (
                waited
                and record is not None
                and not record.gone
                and 0 <= self._age(record) < min(max_age, JUST_SECONDS)
            ):
                return Revalidated("unchanged", record.digest, record.digest)
            most = min(max_age, self._since_heard(record))
            async with self._fleet.tag_flight(repository, tag, most) as flight:
                return await self._settle(repository, tag, record, flight, max_age)

    async def _settle(
        self, repository: Repository, tag: Tag, record: TagRecord | None, flight: TagFlight, max_age: float
    ) -> Revalidated:
        """Find out where the tag points, and move it; what the fleet says that is no more is asked anew (P44)."""
        said = flight.said
        try:
            try:
                return await self._move(
                    repository, tag, record, await self._ask(repository, tag, record, flight, said, max_age)
                )
            except NotFound:
                if said is None or said.found is None:
                    raise
            return await self._move(
                repository, tag, record, await self._ask(repository, tag, record, flight, None, max_age)
            )
        except NotFound as error:
            age = said.age if said is not None and said.found is None else 0.0
            self._negatives.remember("manifest", repository, tag, error, age=age)
            if record is not None:
                await self._catalog.deny_tag(repository, tag, self._now())
            self._emit(TagRevalidated(repository.upstream, "gone"))
            raise
        except RegistryError:
            self._emit(TagRevalidated(repository.upstream, "failed"))
            raise

    async def _ask(
        self,
        repository: Repository,
        tag: Tag,
        record: TagRecord | None,
        flight: TagFlight,
        said: TagSaid | None,
        max_age: float,
    ) -> Heard:
        """Return what the tag is: as the fleet was told, else as its home has it, else as the upstream says now.

        What the home heard longer ago than `max_age` is taken only where the upstream does not answer here.
        """
        if said is not None and said.found is None:
            raise ManifestUnknown(said.message)
        if said is not None and said.found is not None:
            self._upstreams.heard(repository.upstream, said.age)
            return Heard(said.found, self._now() - said.age)
        policy = self._policy(repository.upstream)
        at_home = await self._regions.tag(repository, tag, record, max_age)
        told = None
        if at_home is not None and at_home.age <= policy.ttl and (found := described(at_home.record)) is not None:
            told = Heard(found, self._now() - at_home.age, record=at_home.record)
            if at_home.age <= max(max_age, AGAIN_SECONDS):
                return told
        try:
            heard = await self._ask_upstream(repository, tag)
        except Transient:
            if told is None:
                raise
            return told
        except NotFound as error:
            if not isinstance(error.__cause__, Denied):
                flight.heard(error, policy.negative_ttl)
            raise
        if heard.by_main or record is None or heard.descriptor.digest not in record.past:
            flight.heard(heard.descriptor, policy.ttl)
        return heard

    async def _ask_upstream(self, repository: Repository, tag: Tag) -> Heard:
        main, *_ = self._upstreams.of(repository)

        async def question(source: Source) -> tuple[Descriptor, bool]:
            return await source.resolve(repository, tag), source is main

        found, by_main = await self._upstreams.ask(repository, question, ManifestUnknown, elsewhere=(Transient,))
        heard = Heard(found, self._now(), by_main)
        self._certain.note(repository, tag, heard)
        return heard

    async def _move(self, repository: Repository, tag: Tag, record: TagRecord | None, heard: Heard) -> Revalidated:
        """Fetch the manifest of what was heard if it is new and mature, then move the tag."""
        known, found, at = record.digest if record else None, heard.descriptor, heard.at
        policy = self._policy(repository.upstream)
        self._negatives.forget("manifest", repository, tag)
        cooldown = cooldown_of(record, heard, self._catalog.region, policy.cooldown)
        decision = decide(record, found.digest, cooldown, self._now())
        if record is not None and decision != "move":
            await self._stay(repository, tag, record, found.digest, at)
            self._emit(TagRevalidated(repository.upstream, decision))
            return Revalidated(decision, record.digest, record.digest, found.digest if decision == "held" else None)
        self._negatives.forget_all({("manifest", repository, found.digest)})
        here = await self._catalog.blob(found.digest)
        if here is not None and here.present:
            await self._catalog.prove(repository, found.digest, Proof.SYNCED if heard.record else Proof.HEAD)
        elif record is not None and policy.frugal and await self._is_servable(record):
            raise TooManyRequests(f"the pull quota of {repository.upstream} is used up; {tag} stays as it was")
        descriptor = await self._manifests.describe(repository, found.digest)
        if heard.record is not None:
            await self._catalog.apply(repository, [heard.record])
            await self._catalog.touch_tag(repository, tag, at)
        else:
            await self._catalog.put_tag(repository, tag, descriptor, at)
        outcome = "moved" if known else "new"
        self._emit(TagRevalidated(repository.upstream, outcome))
        return Revalidated(outcome, known, descriptor.digest)

    async def _stay(self, repository: Repository, tag: Tag, record: TagRecord, found: Digest, now: float) -> None:
        """Record that the tag was confirmed at `now`, or seen to be what may not be served yet; it does not move."""
        if found != record.digest:
            await self._catalog.hold_tag(repository, tag, found, now)
        elif record.pending is not None or record.gone:
            await self._catalog.put_tag(repository, tag, record.descriptor, now)
        else:
            await self._catalog.touch_tag(repository, tag, now)

    async def _serve(self, repository: Repository, record: TagRecord, policy: TagPolicy) -> ServedManifest:
        served = await self._manifests.get(repository, record.descriptor.digest)
        return replace(served, fresh_for=min(served.fresh_for, self._fresh_for(record, policy)))

    async def _stale(
        self, repository: Repository, record: TagRecord | None, error: RegistryError, policy: TagPolicy
    ) -> ServedManifest:
        """Serve the old answer because of `error`, if there is one that may and can still be served."""
        if record is None:
            raise error
        limit = policy.stale_if_error
        if limit is not None and self._age(record) > policy.ttl + limit:
            raise error
        if not await self._is_servable(record) and not await self._fleet.has_image(repository, record.digest):
            raise error
        served = await self._manifests.get(repository, record.descriptor.digest)
        age = max(0.0, self._age(record))
        warning = f"stale: last confirmed {int(age)} s ago, upstream cannot confirm it now"
        fresh_for = min(served.fresh_for, STALE_SECONDS)
        return replace(served, outcome="stale", fresh_for=fresh_for, warning=warning, age=age)

    async def _is_servable(self, record: TagRecord) -> bool:
        blob = await self._catalog.blob(record.descriptor.digest)
        return blob is not None and blob.servable

    def _age(self, record: TagRecord) -> float:
        return self._now() - record.checked_at

    def _since_heard(self, record: TagRecord | None) -> float:
        """Return the seconds since this node last heard of the tag: what others heard before that counts no more."""
        if record is None:
            return math.inf
        heard = max(record.checked_at, record.observed_at, record.denied_at or 0.0)
        return max(0.0, self._now() - heard)

    def _fresh_for(self, record: TagRecord, policy: TagPolicy, max_age: float = math.inf) -> float:
        age = self._age(record)
        if age < 0:
            return 0.0
        return min(min(policy.ttl, max_age) - age, matures_in(record, policy.cooldown, self._now()))
