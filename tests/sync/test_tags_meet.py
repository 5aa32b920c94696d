"""A tag that moves everywhere at once: catalogs that exchange it as nodes and as regions end alike, cut or not."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from proxy.cache.progress import Signal
from proxy.oci.errors import BadContent, Unavailable
from proxy.store import tagstate
from proxy.store.catalog import Catalog
from proxy.store.disk import Disk
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.feed import read_page
from proxy.store.layout import Layout
from sync import following
from sync.exchange import Exchange
from sync.feed import Changes
from sync.following import Fetch
from sync.records import MSGPACK, Question
from tests.store.contents import ALPINE, digest, parsed, put
from tests.sync.lab import LATEST, image
from tests.sync.regional import Balanced, Link, Region, fingerprint, points, region

MESH = b"m" * 32
IMAGES = [f"image {number}" for number in range(6)]


class World:
    """Two nodes of region a, one of b, one of c. State: what runs over their folders, and what was copied aside."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.nodes: dict[str, Region] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.answers = 0

    async def open(self, name: str) -> None:
        path = Layout(self.folder / name).catalog
        path.parent.mkdir(exist_ok=True)
        catalog = await Catalog.open(path, Disk(), region=name[0])
        if name in ("a1", "a2"):
            await catalog.rekey(MESH)
        self.nodes[name] = Region(catalog)
        self.links.clear()

    async def close(self, name: str) -> None:
        await self.nodes[name].catalog.aclose()

    async def step(self) -> None:
        """Let one thing happen somewhere."""
        name = self.chance.choice(sorted(self.nodes))
        catalog = self.nodes[name].catalog
        match self.chance.choices(["move", "remove", "lose", "evict", "talk"], [8, 1, 0.3, 1, 8])[0]:
            case "move":
                which = self.chance.choice(IMAGES)
                await put(catalog, which, parsed("image"))
                await catalog.put_tag(ALPINE, LATEST, image(which), time.time() + self.chance.uniform(-100, 100))
            case "remove":
                await catalog.remove(ALPINE, LATEST if self.chance.random() < 0.5 else digest(IMAGES[0]))
            case "evict":
                await catalog.lose_blob(digest(self.chance.choice(IMAGES)), lambda: False)
            case "lose":
                await self.restore(name)
            case "talk":
                await self.talk(name, self.chance.randint(1, 4))

    async def restore(self, name: str) -> None:
        """The first time keep a copy; the next time it takes the place of what is there."""
        layout = Layout(self.folder / name)
        if not layout.backup.exists():
            with closing(sqlite3.connect(layout.catalog)) as source, closing(sqlite3.connect(layout.backup)) as copy:
                source.backup(copy)
            return
        await self.close(name)
        layout.catalog.write_bytes(b"this is no catalog" * 100)
        await self.open(name)

    async def talk(self, name: str, answers: int) -> None:
        """Let a node hear of all others, as far as so many answers go from each."""
        others = [other for other in sorted(self.nodes) if other != name]
        self.chance.shuffle(others)
        for other in others:
            self.answers = answers
            with suppress(Unavailable, BadContent):  # nodes of a that do not know the same yet
                if name[0] == other[0]:
                    exchange = Exchange(self.nodes[name].catalog, partial(list, [other]), Signal(), self.fetch)
                    await exchange.catch_up(other)
                else:
                    await self.link(name, other).once()

    def link(self, name: str, other: str) -> Link:
        """Return what follows a region; either node of a answers for both."""
        key = (name, other[0])
        if key not in self.links:
            giver = Balanced([self.nodes["a1"], self.nodes["a2"]]) if other[0] == "a" else self.nodes[other]
            link = self.links[key] = Link(self.nodes[name], giver)
            link.follower._fetch = self.counted(link.follower._fetch)
        return self.links[key]

    async def fetch(self, url: str, target: str, seconds: float) -> bytes:
        self._count()
        return await Changes(self.nodes[url].catalog)._answer(Question.parse(target.partition("?")[2]), MSGPACK)

    def counted(self, fetch: Fetch) -> Fetch:
        async def counting(target: str, seconds: float, body: bytes | None = None) -> bytes:
            self._count()
            return await fetch(target, seconds, body)

        return counting

    def _count(self) -> None:
        self.answers -= 1
        if self.answers < 0:
            raise Unavailable("the link is cut")

    async def says(self, name: str) -> set[tuple[object, ...]]:
        """Return what a catalog says of the tag, and of the roots."""
        catalog = self.nodes[name].catalog
        page = await catalog.read(lambda connection: read_page(connection, catalog.epoch, 0, 1000))
        said: set[tuple[object, ...]] = set()
        for record in page.records:
            if isinstance(record, TagChange):
                state = tagstate.state_of(record)
                said.add(tuple((one.digest, one.generation, one.version, one.base, one.origin) for one in state))
            elif isinstance(record, MembershipChange) and record.root is not None:
                said.add((record.digest, *record.rank, record.root))
        return said


async def test_who_forgot_what_a_tag_was_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """East forgets X for newer entries and sees it late: west, for whom that is no news, tells once more."""
    monkeypatch.setattr(tagstate, "MOST_OTHERS", 1)
    west, east = await region(tmp_path, "west"), await region(tmp_path, "east")
    try:
        for name, now in (("x", 100.0), ("a", 900.0)):
            await west.saw("latest", name, now=now)
        await east.saw("latest", "w", now=700.0)
        await Link(east, west).once()
        await east.saw("latest", "x", now=1000.0)
        for _ in range(2):
            await Link(west, east).once()
            await Link(east, west).once()
        assert await points(west, "latest") == await points(east, "latest") == digest("a")
        heads = [await head(one.catalog) for one in (west, east)]
        await Link(west, east).once()
        await Link(east, west).once()
        assert [await head(one.catalog) for one in (west, east)] == heads
    finally:
        await west.catalog.aclose()
        await east.catalog.aclose()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for nodes that know different things: here nothing goes on meanwhile."""
    monkeypatch.setattr(following, "SETTLE_SECONDS", 0.0)


@pytest.mark.parametrize("seed", range(2))
async def test_all_end_alike_whatever_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(tagstate, "MOST_OTHERS", 2)
    await meet(tmp_path, seed, 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
async def test_all_end_alike_after_long_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(tagstate, "MOST_OTHERS", 1 + seed % 4)
    await meet(tmp_path, seed, 150)


async def meet(folder: Path, seed: int, steps: int) -> None:
    world = World(folder, random.Random(seed))
    for name in ("a1", "a2", "b", "c"):
        await world.open(name)
    try:
        for _ in range(steps):
            await world.step()
        for _ in range(12):
            for name in world.chance.sample(sorted(world.nodes), 4):
                await world.talk(name, 1000)
            said = [await world.says(name) for name in sorted(world.nodes)]
            if all(one == said[0] for one in said):
                break
        assert said == [said[0]] * 4
        sums = [await fingerprint(world.nodes[name]) for name in ("a1", "a2")]
        assert sums[0] == sums[1]
        heads = [await head(node.catalog) for node in world.nodes.values()]
        for name in sorted(world.nodes):
            await world.talk(name, 1000)
        assert [await head(node.catalog) for node in world.nodes.values()] == heads  # all have come to rest
        assert await world.links["b", "c"].shadow() == await fingerprint(world.nodes["c"])
    finally:
        for name in world.nodes:
            await world.close(name)


async def head(catalog: Catalog) -> int:
    return (await catalog.read(lambda connection: read_page(connection, catalog.epoch, 0, 1))).head
