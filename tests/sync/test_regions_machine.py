"""Whatever happens to three regions, in whatever order they hear of one another: they end alike, and know it."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from metrics.events import Event
from proxy.oci.descriptor import Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Reference, Repository, Tag
from proxy.regions.scope import Scope
from proxy.store.catalog import Catalog, Proof
from proxy.store.layout import Layout
from proxy.store.store import Store
from proxy.store.tagstate import read_others
from sync.engine import Engine
from sync.following import Fetch, Follower
from sync.holding import Holding
from sync.regional_feed import Ranges, RegionChanges
from sync.regional_records import CHANGES, RANGES
from sync.selection import Rules
from sync.standing import PeerRules
from tests.store.contents import ALPINE, BUSYBOX
from tests.support.contents import Image, blob, make_image

NAMES = ("a", "b", "c")
NODE = st.integers(0, len(NAMES) - 1)
REPOSITORY = st.sampled_from([ALPINE, BUSYBOX])
TAG = st.sampled_from([Tag("latest"), Tag("v1")])
SKEW = st.sampled_from([-100.0, 0.0, 0.0, 100.0])
IMAGES = [make_image([blob(200, seed=seed)]) for seed in range(3)]
IMAGES.append(make_image([blob(200, seed=9)], subject=IMAGES[0]))
IMAGE = st.integers(0, len(IMAGES) - 1)
BYTES = {Digest.of(data): data for image in IMAGES for data in (image.body, *image.blobs)}
MEDIA_TYPE = {image.digest: image.media_type for image in IMAGES}
ALL = Scope.of(["*"])
MOST_LOSSES = 3
QUIET_ROUNDS = 8


class Shelf:
    """Where the bytes of images come from: a Filler that stores them, and fails for what is out of reach."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.out_of_reach: set[Digest] = set()

    async def ensure_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        await self._store_blob(repository, digest)
        return Manifest(Descriptor(MEDIA_TYPE[digest], digest, len(BYTES[digest])), BYTES[digest])

    async def ensure_blob(self, repository: Repository, digest: Digest) -> int:
        await self._store_blob(repository, digest)
        return len(BYTES[digest])

    def arriving(self, digest: Digest) -> None:
        """Nothing takes long."""

    async def leave(self, digest: Digest) -> None:
        """Nothing goes on by itself."""

    async def _store_blob(self, repository: Repository, digest: Digest) -> None:
        if digest in self.out_of_reach:
            raise Unavailable(f"{digest} is out of reach")
        await keep(self._store, repository, digest, Proof.SYNCED)


async def keep(store: Store, repository: Repository, digest: Digest, proof: Proof) -> None:
    """Store bytes that were fetched for a repository."""
    known = await store.catalog.blob(digest)
    if known is not None and known.present:
        await store.catalog.prove(repository, digest, proof)
        return
    spool = await store.begin(digest, len(BYTES[digest]), repository)
    spool.write(0, BYTES[digest])
    media_type = MEDIA_TYPE.get(digest)
    parsed = None if media_type is None else parse_manifest(BYTES[digest], media_type)
    await store.commit(spool, size=len(BYTES[digest]), repository=repository, proof=proof, public=False, parsed=parsed)


@dataclass
class Region:
    """A region while it runs."""

    store: Store
    shelf: Shelf
    engine: Engine
    answering: dict[str, RegionChanges | Ranges]
    followers: dict[int, Follower] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        return self.store.catalog


class Regions(RuleBasedStateMachine):
    """Real stores, without HTTP. State: a folder and what runs over it, per region."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        self._regions: list[Region] = []
        self._answers = 0
        self._losses = 0
        self._events: list[Event] = []

    @initialize()
    def begin(self) -> None:
        for number in range(len(NAMES)):
            self._regions.append(self._runner.run(self._open(number)))

    @rule(region=NODE, repository=REPOSITORY, tag=TAG, image=IMAGE, skew=SKEW)
    def observe(self, region: int, repository: Repository, tag: Tag, image: int, skew: float) -> None:
        self._runner.run(self._observe(self._regions[region], repository, tag, IMAGES[image], skew))

    @rule(region=NODE, repository=REPOSITORY, image=IMAGE)
    def pull_by_digest(self, region: int, repository: Repository, image: int) -> None:
        self._runner.run(self._pull(self._regions[region].store, repository, IMAGES[image]))

    @rule(region=NODE, repository=REPOSITORY, what=st.one_of(TAG, st.sampled_from([image.digest for image in IMAGES])))
    def remove(self, region: int, repository: Repository, what: Reference) -> None:
        self._runner.run(self._regions[region].catalog.remove(repository, what))

    @rule(region=NODE, digest=st.sampled_from(sorted(BYTES)))
    def evict(self, region: int, digest: Digest) -> None:
        """Lose bytes: records stay, and nobody fetches them again unasked."""
        self._runner.run(self._regions[region].catalog.lose_blob(digest, lambda: False))

    @rule(taker=NODE, giver=NODE, answers=st.integers(0, 6))
    def poll(self, taker: int, giver: int, answers: int) -> None:
        """As far as some answers go; then the link is cut."""
        if taker != giver:
            with suppress(Unavailable):
                self._runner.run(self._poll(taker, giver, answers))

    @rule(region=NODE, away=st.sets(st.sampled_from(sorted(BYTES)), max_size=3), force=st.booleans())
    def sync(self, region: int, away: set[Digest], force: bool) -> None:
        """A pass that cannot reach everything."""
        self._regions[region].shelf.out_of_reach = away
        self._runner.run(self._regions[region].engine.once((), force))

    @rule(region=NODE)
    def crash(self, region: int) -> None:
        """Whatever was only in memory is gone."""
        self._reopen(region)

    @rule(region=NODE)
    def back_up(self, region: int) -> None:
        for place in (Layout(self._data(region)).backup, self._put_aside(region)):
            place.unlink(missing_ok=True)
            with closing(sqlite3.connect(self._path(region))) as source, closing(sqlite3.connect(place)) as target:
                source.backup(target)

    @precondition(lambda self: self._losses < MOST_LOSSES)
    @rule(region=NODE)
    def lose_and_restore(self, region: int) -> None:
        """A damaged catalog is replaced by its last copy, or an empty one, and has another epoch."""
        self._losses += 1
        self._reopen(region, lambda: self._path(region).write_bytes(b"this is no catalog" * 100))

    @precondition(lambda self: self._losses < MOST_LOSSES)
    @rule(region=NODE)
    def put_an_older_state_back(self, region: int) -> None:
        """Somebody copies an older catalog over this one: its epoch is the same, and its history is not."""
        if self._put_aside(region).exists():
            self._losses += 1
            self._reopen(region, lambda: self._put_back(region))

    @rule(seed=st.integers(0, 1000))
    def all_agree_after_some_quiet_rounds(self, seed: int) -> None:
        order = random.Random(seed)
        pairs = [(taker, giver) for taker in range(len(NAMES)) for giver in range(len(NAMES)) if taker != giver]
        for _ in range(QUIET_ROUNDS):
            order.shuffle(pairs)
            for taker, giver in pairs:
                self._runner.run(self._poll(taker, giver, 1000))
            for region in order.sample(self._regions, len(self._regions)):
                region.shelf.out_of_reach = set()
                report = self._runner.run(region.engine.once((), True))
                assert not report.failed
            if len({frozenset(self._records(number)) for number in range(len(NAMES))}) == 1:
                break
        for taker, giver in pairs:
            self._runner.run(self._poll(taker, giver, 1000))
        records = [self._records(number) for number in range(len(NAMES))]
        assert records[0] == records[1] == records[2]
        for taker, giver in pairs:
            assert self._shadow(taker, giver) == self._own(giver)
        for number in range(len(NAMES)):
            assert not self._read(number, "SELECT * FROM pending")

    def teardown(self) -> None:
        try:
            if self._regions:
                self.all_agree_after_some_quiet_rounds(0)
        finally:
            for region in self._regions:
                self._runner.run(region.store.close())
            self._runner.close()
            self._folder.cleanup()

    async def _observe(self, region: Region, repository: Repository, tag: Tag, image: Image, skew: float) -> None:
        await self._pull(region.store, repository, image)
        found = Descriptor(image.media_type, image.digest, len(image.body))
        await region.catalog.put_tag(repository, tag, found, time.time() + skew)

    async def _pull(self, store: Store, repository: Repository, image: Image) -> None:
        for data in (image.body, *image.blobs):
            await keep(store, repository, Digest.of(data), Proof.FETCHED)

    async def _open(self, number: int) -> Region:
        store = await Store.open(self._data(number), region=NAMES[number])
        shelf = Shelf(store)
        rules = {name: self._rules() for name in NAMES if name != NAMES[number]}
        holding = await Holding.load(store.catalog, {})
        engine = Engine(store.catalog, store, shelf, rules, holding, lambda name: None, self._events.append)
        answering: dict[str, RegionChanges | Ranges] = {
            CHANGES: RegionChanges(store.catalog),
            RANGES: Ranges(store.catalog),
        }
        return Region(store, shelf, engine, answering)

    def _rules(self) -> PeerRules:
        return PeerRules(Rules(ALL, (), None, (), True), 0.0, 0.25)

    def _reopen(self, number: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._runner.run(self._regions[number].store.close())
        meanwhile()
        self._regions[number] = self._runner.run(self._open(number))

    def _put_back(self, number: int) -> None:
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path(number)}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self._put_aside(number), self._path(number))

    async def _poll(self, taker: int, giver: int, answers: int) -> None:
        self._answers = answers
        region = self._regions[taker]
        if giver not in region.followers:
            region.followers[giver] = Follower(
                region.catalog, NAMES[giver], ALL, self._fetching(giver), self._events.append, lambda: None
            )
        await region.followers[giver].once()

    def _fetching(self, giver: int) -> Fetch:
        async def fetch(target: str, seconds: float, body: bytes | None = None) -> bytes:
            self._answers -= 1
            if self._answers < 0:
                raise Unavailable("the link is cut")
            request = _request(target, body)
            answer = await self._regions[giver].answering[request.path](request, ALL)
            assert isinstance(answer.body, bytes)
            assert answer.status == 200
            return answer.body

        return fetch

    def _records(self, number: int) -> list[tuple[object, ...]]:
        """Return what regions agree on: of every tag and root its key and what it says, with its version."""
        tags = """
            SELECT upstream, path, name, digest, version, generation, base, origin, others FROM tag
            JOIN repository ON repository.id = tag.repository
        """
        roots = """
            SELECT upstream, path, digest, version, removed, membership.root FROM membership
            JOIN repository ON repository.id = membership.repository WHERE membership.root IS NOT NULL
        """
        said: list[tuple[object, ...]] = []
        for *says, others in self._read(number, tags):
            past = [(one.digest, one.generation, one.version, one.base, one.origin) for one in read_others(others)]
            said.append((*says, *past))
        return sorted(said + self._read(number, roots), key=repr)

    def _own(self, number: int) -> set[tuple[object, ...]]:
        return set(self._read(number, "SELECT place, mark FROM root WHERE peer = 0"))

    def _shadow(self, taker: int, giver: int) -> set[tuple[object, ...]]:
        query = f"SELECT place, mark FROM root WHERE peer = (SELECT id FROM peer WHERE name = '{NAMES[giver]}')"
        return set(self._read(taker, query))

    def _read(self, number: int, query: str) -> list[tuple[Any, ...]]:
        return self._runner.run(self._regions[number].catalog.read(lambda one: one.execute(query).fetchall()))

    def _data(self, number: int) -> Path:
        return Path(self._folder.name) / NAMES[number]

    def _put_aside(self, number: int) -> Path:
        return Path(self._folder.name) / f"{NAMES[number]}.aside.sqlite"

    def _path(self, number: int) -> Path:
        return Layout(self._data(number)).catalog


def _request(target: str, body: bytes | None) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    payload = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    payload.feed_data(body or b"")
    payload.feed_eof()
    return make_mocked_request("GET" if body is None else "POST", target, payload=payload)


def test_regions_end_alike() -> None:
    run_state_machine_as_test(
        Regions,
        settings=settings(
            max_examples=6, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_regions_end_alike_after_many_histories() -> None:
    run_state_machine_as_test(
        Regions,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
