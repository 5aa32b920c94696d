"""Whatever happens to the catalogs of a fleet, in whatever order they hear of one another: they end alike."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from proxy.cache.progress import Signal
from proxy.oci.descriptor import Descriptor
from proxy.oci.errors import Unavailable
from proxy.oci.names import Reference, Tag
from proxy.store.catalog import Catalog, Proof
from proxy.store.disk import Disk
from proxy.store.exchanged import Change, TagChange
from proxy.store.feed import read_page
from proxy.store.layout import Layout
from proxy.store.tagstate import state_of
from sync import feed
from sync.exchange import Exchange, Fetch
from sync.feed import Changes
from sync.records import MSGPACK, Question
from tests.store.contents import ALPINE, BUSYBOX, TYPES, digest

NODES = 3
NODE = st.integers(0, NODES - 1)
REPOSITORY = st.sampled_from([ALPINE, BUSYBOX])
TAG = st.just(Tag("latest"))
NAME = st.sampled_from(["one", "two", "three"])
SKEW = st.sampled_from([-100.0, 0.0, 0.0, 100.0])
PAGE = 3
MOST_LOSSES = 2

State = frozenset[tuple[object, ...]]


def says(record: Change) -> object:
    """Return what is compared of a record."""
    if isinstance(record, TagChange):
        return tuple((past.digest, past.generation, past.version, past.base, past.origin) for past in state_of(record))
    return record.rank, getattr(record, "root", None)


class Fleet(RuleBasedStateMachine):
    """Real catalogs, without HTTP. State: a folder and an open catalog per node."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._folder = tempfile.TemporaryDirectory()
        self._catalogs: list[Catalog] = []
        self._exchanges: dict[tuple[int, int], Exchange] = {}
        self._pages = 0
        self._losses = 0
        self._patch = mock.patch.multiple(feed, MOST_RECORDS=PAGE, MOST_COPIED=PAGE)
        self._patch.start()

    @initialize()
    def begin(self) -> None:
        for number in range(NODES):
            self._data(number).mkdir()
            self._catalogs.append(self._open(number))

    @rule(node=NODE, repository=REPOSITORY, tag=TAG, name=NAME, skew=SKEW)
    def observe(self, node: int, repository: object, tag: Tag, name: str, skew: float) -> None:
        what = Descriptor(TYPES["image"], digest(name), len(name))
        catalog = self._catalogs[node]
        self._runner.run(catalog.put_tag(repository, tag, what, time.time() + skew))  # type: ignore[arg-type]
        self._runner.run(catalog.prove(repository, digest(name), Proof.FETCHED))  # type: ignore[arg-type]

    @rule(node=NODE, repository=REPOSITORY, what=st.one_of(TAG, NAME.map(digest)))
    def remove(self, node: int, repository: object, what: Reference) -> None:
        self._runner.run(self._catalogs[node].remove(repository, what))  # type: ignore[arg-type]

    @rule(node=NODE, repository=REPOSITORY, what=st.one_of(TAG, NAME.map(digest)), keep=st.booleans())
    def pin(self, node: int, repository: object, what: Reference, keep: bool) -> None:
        catalog = self._catalogs[node]
        change = catalog.pin if keep else catalog.unpin
        self._runner.run(change(repository, what))  # type: ignore[arg-type]

    @rule(taker=NODE, giver=NODE, pages=st.integers(1, 9), dies=st.booleans())
    def pull(self, taker: int, giver: int, pages: int, dies: bool = False) -> None:
        """As far as some pages go, then the giver crashes; or the taker `dies` before it asks again."""
        if taker != giver:
            if dies:
                self._exchanges.pop((taker, giver), None)
            with suppress(Unavailable):
                self._runner.run(self._pull(taker, giver, pages))

    @rule(node=NODE)
    def back_up(self, node: int) -> None:
        source = sqlite3.connect(self._path(node))
        Layout(self._data(node)).backup.unlink(missing_ok=True)
        with closing(source), closing(sqlite3.connect(Layout(self._data(node)).backup)) as target:
            source.backup(target)

    @precondition(lambda self: self._losses < MOST_LOSSES)
    @rule(node=NODE)
    def lose_and_restore(self, node: int) -> None:
        self._losses += 1
        for pair in [pair for pair in self._exchanges if node in pair]:
            del self._exchanges[pair]
        epoch = self._catalogs[node].epoch
        self._runner.run(self._catalogs[node].aclose())
        self._path(node).write_bytes(b"this is no catalog" * 100)
        self._catalogs[node] = self._open(node)
        assert self._catalogs[node].epoch != epoch

    @rule(seed=st.integers(0, 1000))
    def all_agree_once_everybody_has_pulled_from_everybody_twice(self, seed: int) -> None:
        order = random.Random(seed)
        pairs = [(taker, giver) for taker in range(NODES) for giver in range(NODES) if taker != giver]
        for _ in range(2):
            order.shuffle(pairs)
            for taker, giver in pairs:
                self._runner.run(self._pull(taker, giver, 1000))
        states = [self._state(node) for node in range(NODES)]
        assert states[0] == states[1] == states[2]
        heads = [self._head(node) for node in range(NODES)]
        for taker, giver in pairs:
            self._runner.run(self._pull(taker, giver, 1000))
        assert [self._head(node) for node in range(NODES)] == heads  # the mesh has come to rest

    def teardown(self) -> None:
        try:
            if self._catalogs:
                self.all_agree_once_everybody_has_pulled_from_everybody_twice(0)
        finally:
            for catalog in self._catalogs:
                self._runner.run(catalog.aclose())
            self._runner.close()
            self._patch.stop()
            self._folder.cleanup()

    def _data(self, node: int) -> Path:
        return Path(self._folder.name) / f"node-{node}"

    def _path(self, node: int) -> Path:
        return Layout(self._data(node)).catalog

    def _open(self, node: int) -> Catalog:
        return self._runner.run(Catalog.open(self._path(node), Disk()))

    async def _pull(self, taker: int, giver: int, pages: int) -> None:
        self._pages = pages
        url = f"http://node-{giver}:1"
        exchange = self._exchanges.get((taker, giver)) or Exchange(
            self._catalogs[taker], lambda: [url], Signal(), self._fetching(giver)
        )
        self._exchanges[taker, giver] = exchange
        await exchange.catch_up(url)

    def _fetching(self, giver: int) -> Fetch:
        async def fetch(url: str, target: str, seconds: float) -> bytes:
            self._pages -= 1
            if self._pages < 0:
                raise Unavailable("crashed")
            handler = Changes(self._catalogs[giver])
            return await handler._answer(Question.parse(target.partition("?")[2]), MSGPACK)

        return fetch

    def _state(self, node: int) -> State:
        """Return what is agreed on: of every record its key and what it says, with its version."""
        catalog = self._catalogs[node]
        page = self._runner.run(catalog.read(lambda connection: read_page(connection, catalog.epoch, 0, 1000)))
        return frozenset(
            (
                type(record).__name__,
                page.repositories[record.at],
                getattr(record, "name", None) or getattr(record, "reference", None) or getattr(record, "digest", None),
                says(record),
            )
            for record in page.records
        )

    def _head(self, node: int) -> int:
        catalog = self._catalogs[node]
        return self._runner.run(catalog.read(lambda connection: read_page(connection, catalog.epoch, 0, 1))).head


def test_catalogs_agree_after_any_history() -> None:
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def test_catalogs_that_heard_of_a_tag_in_another_order_agree() -> None:
    """The first saw X, the second Y, the third X late: X of 1, Y of 2, X of 3, which says nothing new."""
    fleet = Fleet()
    try:
        fleet.begin()
        for node, (name, skew) in enumerate([("one", -100.0), ("two", 0.0), ("one", 100.0)]):
            fleet.observe(node, ALPINE, Tag("latest"), name, skew)
        for taker, giver in [(2, 1), (2, 0), (1, 2), (0, 1), (0, 2), (1, 0), (2, 1), (2, 0), (1, 2)]:
            fleet.pull(taker, giver, 9)
        latest = [fleet._runner.run(catalog.tag(ALPINE, Tag("latest"))) for catalog in fleet._catalogs]
        assert [record and record.digest for record in latest] == [digest("two")] * NODES
    finally:
        fleet.teardown()
