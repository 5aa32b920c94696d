"""What waits of a peer is fetched whole, published last, and put off where it fails: on a real store."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from metrics.events import Event, ImageFailed, ImageSynced, PeerStanding
from proxy.cache.fill import Arriving
from proxy.oci.choosing import TagChoice
from proxy.oci.descriptor import Descriptor, Manifest
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, ManifestUnknown, RegistryError, Unavailable
from proxy.oci.manifests import parse_manifest
from proxy.oci.names import Repository, Tag
from proxy.oci.platforms import Platform
from proxy.regions.scope import Scope
from proxy.store import remote
from proxy.store.exchanged import MembershipChange, Past, TagChange
from proxy.store.records import Proof
from proxy.store.remote import Waiting
from proxy.store.roots import Marks
from proxy.store.store import Store
from proxy.store.writer import Transaction
from sync import facts, passing
from sync.engine import Engine, PeerRules
from sync.holding import Holding
from sync.reports import PlannedImage, Progress
from sync.selection import Newest, Rules
from sync.standing import Times

ALPINE = Repository("docker.io", "library/alpine")
MESH = b"m" * 16
PEER = "east"
SOON = 30.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Peer:
    """What another region has, put into the store as the cache does; digests may fail, be cut, or stand still."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.content: dict[Digest, tuple[bytes, str | None]] = {}
        self.errors: dict[Digest, RegistryError] = {}
        self.down = False
        self.asked: list[Digest] = []
        self.given: list[Digest] = []
        self.left: list[Digest] = []
        self.stalled: set[Digest] = set()
        self.stalls = asyncio.Event()
        self.come: dict[Digest, Arriving] = {}

    def blob(self, text: str) -> Digest:
        digest = Digest.of(text.encode())
        self.content[digest] = text.encode(), None
        return digest

    def image(self, *layers: str, subject: Digest | None = None, config: str = "{}") -> Digest:
        body: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._entry(self.blob(config), "application/vnd.oci.image.config.v1+json"),
            "layers": [self._entry(self.blob(layer), "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        }
        if subject is not None:
            body["subject"] = self._entry(subject, MANIFEST)
        return self._manifest(body, MANIFEST)

    def index(self, **images: Digest) -> Digest:
        entries = []
        for architecture, digest in images.items():
            entries.append(self._entry(digest, MANIFEST) | {"platform": {"os": "linux", "architecture": architecture}})
        return self._manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)

    def _entry(self, digest: Digest, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest, "size": len(self.content[digest][0])}

    def _manifest(self, body: dict[str, object], media_type: str) -> Digest:
        raw = json.dumps(body).encode()
        digest = Digest.of(raw)
        self.content[digest] = raw, media_type
        return digest

    async def ensure_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        body, media_type = await self._give(digest)
        descriptor = Descriptor(media_type or "", digest, len(body))
        await self._store.put_manifest(
            body,
            parsed=parse_manifest(body, media_type),
            repository=repository,
            proof=Proof.SYNCED,
            public=False,
            digest=digest,
        )
        return Manifest(descriptor, body)

    async def ensure_blob(self, repository: Repository, digest: Digest) -> int:
        body, _ = await self._give(digest)
        spool = await self._store.begin(digest, len(body), repository)
        await asyncio.to_thread(spool.write, 0, body)
        await self._store.commit(spool, size=len(body), repository=repository, proof=Proof.SYNCED, public=False)
        self.given.append(digest)
        return len(body)

    def arriving(self, digest: Digest) -> Arriving | None:
        return self.come.get(digest)

    def leave(self, digest: Digest) -> None:
        self.left.append(digest)

    async def _give(self, digest: Digest) -> tuple[bytes, str | None]:
        self.asked.append(digest)
        if self.down:
            raise Unavailable("region east does not answer")
        if digest in self.stalled:
            self.stalls.set()
            await asyncio.Event().wait()
        if digest in self.errors:
            raise self.errors[digest].again()
        if digest not in self.content:
            raise ManifestUnknown(f"{digest} is not known")
        return self.content[digest]


class Lab:
    """A store that heard of a peer, and the engine that works for it. `now` is the engine's clock."""

    def __init__(self, store: Store, holding: Holding) -> None:
        self.store = store
        self.catalog = store.catalog
        self.peer = Peer(store)
        self.holding = holding
        self.events: list[Event] = []
        self.now = 1_700_000_000.0
        self.version = 100

    def engine(self, rules: Rules | None = None, *, grace: float = 600.0, share: float = 0.25) -> Engine:
        chosen = PeerRules(rules or Rules(Scope.of(["*"])), grace, share)
        times = Times(lambda: self.now, lambda: 0.0)
        return Engine(
            self.catalog,
            self.store,
            self.peer,
            {PEER: chosen},
            self.holding,
            lambda name: "region east does not answer" if self.peer.down else None,
            self.events.append,
            times,
        )

    async def hears(self, *records: TagChange | MembershipChange, ahead_until: float | None = None) -> None:
        """Let the records wait, those of memberships being merged, as the reader of the peer's feed does."""
        for record in records:
            if isinstance(record, MembershipChange) and not record.removed:
                await self.catalog.apply(ALPINE, [record])

        def operation(transaction: Transaction) -> None:
            connection = transaction.connection
            connection.execute("INSERT OR IGNORE INTO peer (name, mesh) VALUES (?, ?)", (PEER, MESH))
            (number,) = connection.execute("SELECT id FROM peer WHERE name = ?", (PEER,)).fetchone()
            row, marks = transaction.repository(ALPINE), Marks(MESH)
            for record in records:
                key, place, mark = marks.of(ALPINE, record)
                connection.execute(
                    "INSERT INTO root (peer, place, repository, mark) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET mark = excluded.mark",
                    (number, place, row, mark),
                )
                remote.put_waiting(transaction, number, place, row, key, record, self.now, ahead_until)

        await self.catalog.write(operation)

    def tag(self, name: str, digest: Digest | None, base: int = 0) -> TagChange:
        self.version += 1
        media_type, size = (None, None) if digest is None else (MANIFEST, len(self.peer.content[digest][0]))
        said = None if digest is None else str(digest)
        return TagChange(0, 0, name, self.version, said, media_type, size, "east", self.now, self.now, base=base)

    def root(self, digest: Digest, *, removed: bool = False, subject: str = "") -> MembershipChange:
        self.version += 1
        return MembershipChange(0, 0, str(digest), self.version, removed, Proof.SYNCED, self.now, str(subject))

    async def points_to(self, name: str) -> Digest | None:
        record = await self.catalog.tag(ALPINE, Tag(name))
        return None if record is None else record.digest

    async def is_whole(self, digest: Digest) -> bool:
        record = await self.catalog.blob(digest)
        return record is not None and record.complete

    async def waiting(self) -> list[Waiting]:
        return await self.catalog.read(lambda connection: remote.read_waiting(connection, PEER, 1000))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    store = await Store.open(tmp_path)
    try:
        yield Lab(store, await Holding.load(store.catalog, {PEER: ()}))
    finally:
        await store.close()


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[None]:
    task = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(lab: Lab, met: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not met():
            await lab.catalog.published.wait(lab.catalog.published.number, 0.02)


async def test_an_image_is_here_whole_before_its_tag_points_to_it(lab: Lab) -> None:
    image = lab.peer.image("one", "two")
    await lab.hears(lab.root(image), lab.tag("latest", image))
    heard: list[Progress] = []

    async def told(progress: Progress) -> None:
        heard.append(progress)

    report = await lab.engine().once((), told=told)
    assert (report.images, report.tags, report.failed) == (1, 1, ())
    assert await lab.points_to("latest") == image
    assert await lab.is_whole(image)
    assert await lab.waiting() == []
    assert (heard[-1].images, heard[-1].bytes) == (2, heard[-1].total_bytes)
    assert [event for event in lab.events if isinstance(event, ImageSynced)]
    standing = [event for event in lab.events if isinstance(event, PeerStanding)]
    assert (standing[0].images, standing[-1].images) == (2, 0)


async def test_a_tag_whose_image_is_not_whole_is_not_moved_and_the_others_are(lab: Lab) -> None:
    bad, good = lab.peer.image("bad layer"), lab.peer.image("good layer")
    lab.peer.errors[Digest.of(b"bad layer")] = BadContent("x" * 1000)
    await lab.hears(lab.tag("bad", bad), lab.tag("good", good))
    report = await lab.engine().once(())
    assert await lab.points_to("good") == good
    assert await lab.points_to("bad") is None
    (row,) = await lab.waiting()
    assert (row.tries, len(row.error or "")) == (1, 300)
    assert row.next_at > lab.now
    assert [name for name, _ in report.failed] == [f"{ALPINE}:bad"]
    assert [event.reason for event in lab.events if isinstance(event, ImageFailed)] == ["corrupt"]
    lab.peer.errors.clear()
    await lab.engine().once(())
    assert await lab.points_to("bad") == bad


async def test_a_peer_that_does_not_answer_is_no_failure_of_its_images(lab: Lab) -> None:
    images = [lab.peer.image(f"layer {number}") for number in range(20)]
    await lab.hears(*(lab.tag(f"t{number}", image) for number, image in enumerate(images)))
    lab.peer.down = True
    report = await lab.engine().once(())
    assert report.unreachable == ((PEER, "region east does not answer"),)
    assert report.failed == ()
    assert {row.tries for row in await lab.waiting()} == {0}
    assert len(lab.peer.asked) < len(images)
    lab.peer.down = False
    assert (await lab.engine().once(())).images == 20


async def test_what_a_peer_that_answers_cannot_give_is_no_failure_of_the_link(lab: Lab) -> None:
    lost = [lab.peer.image(f"lost {number}") for number in range(12)]
    for image in lost:
        lab.peer.errors[image] = Unavailable("evicted there, and its upstream is gone")
    good = lab.peer.image("good")
    await lab.hears(*(lab.tag(f"t{number}", image) for number, image in enumerate([*lost, good])))
    report = await lab.engine().once(())
    assert report.unreachable == ()
    assert len(report.failed) == len(lost)
    assert await lab.points_to("t12") == good
    assert {(row.tries, row.error) for row in await lab.waiting()} == {(1, "evicted there, and its upstream is gone")}


async def test_what_is_shared_by_images_is_fetched_once(lab: Lab) -> None:
    images = [lab.peer.image("shared", f"own {number}") for number in range(6)]
    await lab.hears(*(lab.tag(f"t{number}", image) for number, image in enumerate(images)))
    await lab.engine().once(())
    assert len(lab.peer.asked) == len(set(lab.peer.asked))


async def test_small_images_come_first(lab: Lab) -> None:
    images = {size: lab.peer.image("x" * size) for size in (5000, 10, 900)}
    await lab.hears(*(lab.tag(f"t{size}", image) for size, image in images.items()))
    engine = lab.engine()
    engine._fetcher.images = asyncio.Semaphore(1)
    await engine.once(())
    blobs = [digest for digest in lab.peer.asked if lab.peer.content[digest][1] is None]
    layers = [len(lab.peer.content[digest][0]) for digest in blobs if lab.peer.content[digest][0] != b"{}"]
    assert layers == [10, 900, 5000]


async def test_what_is_not_chosen_is_known_without_its_bytes(lab: Lab) -> None:
    old, new = lab.peer.image("old"), lab.peer.image("new")
    await lab.hears(lab.root(old), lab.root(new), lab.tag("3.17", old), lab.tag("3.18", new))
    await lab.engine(Rules(Scope.of(["*"]), (TagChoice.parse(">=3.18"),))).once(())
    assert (await lab.points_to("3.17"), await lab.points_to("3.18")) == (old, new)
    assert await lab.is_whole(new)
    assert old not in lab.peer.asked
    assert await lab.waiting() == []


async def test_the_tags_of_a_repository_are_read_once_for_the_newest_of_many_windows(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "WINDOW", 4)
    read: list[Repository] = []

    def newest_here(connection: sqlite3.Connection, peer: str, repository: Repository, *rest: Any) -> Newest:
        read.append(repository)
        return counted(connection, peer, repository, *rest)

    counted = facts.newest_here
    monkeypatch.setattr(facts, "newest_here", newest_here)
    images = [lab.peer.image(f"image {number}") for number in range(30)]
    await lab.hears(*(lab.tag(f"1.{number}", image) for number, image in enumerate(images)))
    report = await lab.engine(Rules(Scope.of(["*"]), newest=2)).once(())
    assert (report.images, read) == (2, [ALPINE])
    assert await lab.is_whole(images[28])
    assert await lab.is_whole(images[29])
    assert await lab.points_to("1.0") == images[0]


async def test_what_a_changed_filter_chooses_is_fetched_though_it_was_settled_before(lab: Lab) -> None:
    amd64, arm64, old = lab.peer.image("amd64"), lab.peer.image("arm64"), lab.peer.image("old")
    index = lab.peer.index(amd64=amd64, arm64=arm64)
    await lab.hears(lab.tag("2", index), lab.tag("1", old))
    one = Rules(Scope.of(["*"]), (TagChoice.parse("2"),), platforms=(Platform("linux", "arm64"),))
    await lab.engine(one).once(())
    asked = set(lab.peer.asked)
    assert await lab.waiting() == []
    assert (await lab.engine(one).once(())).images == 0
    both = Rules(Scope.of(["*"]), platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")))
    report = await lab.engine(both).once(())
    assert report.images == 2
    assert await lab.is_whole(old)
    assert await lab.is_whole(index)
    assert {amd64, old} <= set(lab.peer.asked) - asked
    assert (await lab.engine(both).once(())).images == 0


async def test_only_chosen_platforms_are_fetched_and_the_index_stays_as_it_is(lab: Lab) -> None:
    amd64, arm64 = lab.peer.image("amd64"), lab.peer.image("arm64")
    index, other = lab.peer.index(amd64=amd64, arm64=arm64), lab.peer.index(s390x=amd64)
    await lab.hears(lab.tag("latest", index), lab.tag("big", other))
    report = await lab.engine(Rules(Scope.of(["*"]), platforms=(Platform("linux", "arm64"),))).once(())
    assert await lab.points_to("latest") == index
    assert await lab.is_whole(arm64)
    assert amd64 not in lab.peer.asked
    assert await lab.points_to("big") == other
    assert [(name, why.partition(":")[0]) for name, why in report.failed] == [(f"{ALPINE}:big", "no such platform")]


async def test_a_signature_follows_its_chosen_image_and_no_other(lab: Lab) -> None:
    chosen, left = lab.peer.image("chosen"), lab.peer.image("left out")
    signed, unsigned = lab.peer.image("s1", subject=chosen), lab.peer.image("s2", subject=left)
    await lab.hears(lab.tag("3.18", chosen), lab.tag("edge", left))
    await lab.hears(lab.root(signed, subject=chosen), lab.root(unsigned, subject=left))
    await lab.engine(Rules(Scope.of(["*"]), (TagChoice.parse("3.*"),))).once(())
    assert await lab.is_whole(signed)
    assert lab.peer.asked.index(signed) > lab.peer.asked.index(chosen)
    assert unsigned not in lab.peer.asked
    assert await lab.waiting() == []


async def test_a_pause_lets_go_of_what_is_under_way_and_it_is_finished_later(lab: Lab) -> None:
    image = lab.peer.image("slow")
    slow = Digest.of(b"slow")
    lab.peer.stalled.add(slow)
    await lab.hears(lab.tag("latest", image))
    engine = lab.engine()
    async with running(engine):
        async with asyncio.timeout(SOON):
            await lab.peer.stalls.wait()
        await lab.holding.pause(PEER)
        await until(lab, lambda: slow in lab.peer.left)
        assert engine.report(PEER).state == "held"
        assert (await engine.once((PEER,))).held[0][0] == PEER
        lab.peer.stalled.clear()
        await lab.holding.resume(PEER)
        await until(lab, lambda: any(isinstance(event, ImageSynced) for event in lab.events))
    assert await lab.points_to("latest") == image


async def test_what_comes_to_wait_during_a_pause_is_counted_and_not_fetched(lab: Lab) -> None:
    await lab.holding.pause(PEER)
    engine = lab.engine()
    async with running(engine):
        await lab.hears(lab.tag("latest", lab.peer.image("new")))
        engine.wake(PEER)
        await until(lab, lambda: engine.report(PEER).images_behind == 1)
        assert (engine.report(PEER).state, lab.peer.asked) == ("held", [])


async def test_an_engine_that_was_cut_short_is_followed_by_one_that_fetches_only_the_rest(lab: Lab) -> None:
    image = lab.peer.image("first", "second")
    lab.peer.stalled.add(Digest.of(b"second"))
    await lab.hears(lab.tag("latest", image))
    async with running(lab.engine()):
        async with asyncio.timeout(SOON):
            await lab.peer.stalls.wait()
        await until(lab, lambda: Digest.of(b"first") in lab.peer.given and Digest.of(b"{}") in lab.peer.given)
    assert await lab.points_to("latest") is None
    lab.peer.stalled.clear()
    before = len(lab.peer.asked)
    await lab.engine().once(())
    assert lab.peer.asked[before:] == [Digest.of(b"second")]
    assert await lab.points_to("latest") == image


async def test_a_large_blob_is_seen_to_come_and_what_an_earlier_download_left_is_no_speed(lab: Lab) -> None:
    image, other = lab.peer.image("x" * 1000, config="both"), lab.peer.image("x" * 1000, "y", config="both")
    large = Digest.of(b"x" * 1000)
    lab.peer.stalled.add(large)
    await lab.hears(lab.tag("latest", image), lab.tag("other", other))
    engine = lab.engine()
    heard: asyncio.Queue[Progress] = asyncio.Queue()
    passing = asyncio.create_task(engine.once((), told=heard.put))
    async with asyncio.timeout(SOON):
        await lab.peer.stalls.wait()
        while (before := await heard.get()).bytes < len("both" + "y"):
            pass
        assert (before.total_bytes, engine.report(PEER).bytes_behind) == (1000 + len("both" + "y"), 1000)
        lab.peer.come[large] = Arriving(700, 400)
        lab.now += 10
        while (progress := await heard.get()).bytes == before.bytes:
            pass
    assert progress.bytes == before.bytes + 700
    assert progress.seconds_left == pytest.approx(300 / progress.rate)
    report = engine.report(PEER)
    manifests = sum(len(lab.peer.content[digest][0]) for digest in (image, other))
    assert report.bytes_behind == 300
    assert report.rate == pytest.approx((manifests + before.bytes + 300) / 10)
    passing.cancel()
    await asyncio.wait([passing])


async def test_how_far_behind_is_told_while_nothing_may_be_fetched(lab: Lab) -> None:
    await lab.holding.pause(PEER)
    engine = lab.engine()
    await lab.hears(lab.tag("latest", lab.peer.image("late")))
    lab.now += 3600
    async with running(engine):
        await until(lab, lambda: engine.report(PEER).images_behind == 1)
    assert engine.report(PEER).seconds_behind == 3600
    assert {event.seconds for event in lab.events if isinstance(event, PeerStanding)} == {3600}


async def test_news_wake_the_engine(lab: Lab) -> None:
    engine = lab.engine()
    async with running(engine):
        await until(lab, lambda: engine.report(PEER).state == "current")
        image = lab.peer.image("news")
        await lab.hears(lab.tag("latest", image))
        engine.wake(PEER)
        await until(lab, lambda: any(isinstance(event, ImageSynced) for event in lab.events))
    assert await lab.points_to("latest") == image


async def test_a_plan_fetches_nothing_and_tells_what_would_be_done(lab: Lab) -> None:
    new, old = lab.peer.image("new"), lab.peer.image("old")
    await lab.hears(lab.tag("3.18", new), lab.tag("edge", old))
    planned = await lab.engine(Rules(Scope.of(["*"]), (TagChoice.parse("3.*"),))).plan()
    assert [(one.action, one.reference, one.size) for one in planned] == [
        ("fetch", f"{ALPINE}:3.18", None),
        ("tag", f"{ALPINE}:edge", None),
    ]
    assert planned[1].reason
    assert lab.peer.asked == []
    shown = msgspec.json.decode(msgspec.json.encode(planned), type=list[PlannedImage])  # as a mirror answers a command
    assert shown == planned


async def test_what_was_evicted_comes_back_when_a_verification_asks_for_it(lab: Lab) -> None:
    image = lab.peer.image("evicted")
    await lab.hears(lab.root(image), lab.tag("latest", image))
    engine = lab.engine()
    await engine.once(())
    assert (await engine.verify(PEER)).missing == ()
    await lab.catalog.lose_blob(Digest.of(b"evicted"), lambda: False)
    await engine.once(())
    assert not await lab.is_whole(image)
    report = await engine.verify(PEER)
    assert f"{ALPINE}:latest" in report.missing
    assert report.records == 2
    await engine.once(())
    assert await lab.is_whole(image)


async def test_a_version_of_a_clock_ahead_waits_until_it_can_be_true(lab: Lab) -> None:
    image = lab.peer.image("tomorrow")
    lab.version = int((lab.now + 86400) * 1000) << 16
    await lab.hears(lab.tag("latest", image))
    await lab.engine().once(())
    (row,) = await lab.waiting()
    assert lab.now + 80000 < row.next_at < lab.now + 86400
    assert await lab.points_to("latest") is None
    assert lab.peer.asked == []


async def filled(lab: Lab, count: int) -> list[Digest]:
    images = [lab.peer.image(f"image {number}") for number in range(count)]
    for number, image in enumerate(images):
        await lab.hears(lab.root(image), lab.tag(f"t{number}", image))
    await lab.engine().once(())
    return images


async def removed(lab: Lab, images: list[Digest]) -> None:
    for number, image in enumerate(images):
        known = await lab.catalog.tag_change(ALPINE, Tag(f"t{number}"))
        await lab.hears(lab.root(image, removed=True), lab.tag(f"t{number}", None, known.version if known else 0))


async def test_a_removal_waits_for_its_grace_and_then_takes_image_and_tag_together(lab: Lab) -> None:
    images = await filled(lab, 2)
    await removed(lab, images[:1])
    assert (await lab.engine().once(())).removed == 0
    assert await lab.points_to("t0") == images[0]
    lab.now += 601
    assert (await lab.engine().once(())).removed == 2
    assert await lab.points_to("t0") is None
    assert not await lab.catalog.has_membership(ALPINE, images[0])
    assert await lab.points_to("t1") == images[1]


async def test_a_removal_that_only_both_sides_together_tell_waits_for_its_grace_and_is_carried_out(lab: Lab) -> None:
    (image,) = await filled(lab, 1)
    known = await lab.catalog.tag_change(ALPINE, Tag("t0"))
    assert known is not None
    gone = Past(None, 0, known.version + 1, known.version, "east", None, None, lab.now)
    late = lab.tag("t0", image)
    # There the image was seen only after a removal, here before it: what both know is that it was removed.
    await lab.hears(msgspec.structs.replace(late, version=known.version + 2, others=(gone,)))
    engine = lab.engine()
    assert (await engine.once(())).removed == 0
    assert engine.report(PEER).removals == 1
    assert [(one.action, one.digest) for one in await engine.plan()] == [("remove", None)]
    lab.now += 599
    assert (await engine.once(())).removed == 0
    assert await lab.points_to("t0") == image
    lab.now += 2
    await lab.catalog.pin(ALPINE, Tag("t0"))
    assert "pinned here" in (await engine.once(())).refused[0]
    await lab.catalog.unpin(ALPINE, Tag("t0"))
    assert (await engine.once(())).removed == 1
    assert await lab.points_to("t0") is None
    assert await lab.waiting() == []


async def test_a_removal_by_a_clock_ahead_is_carried_out_once_it_can_be_true(lab: Lab) -> None:
    (image,) = await filled(lab, 1)
    lab.version = int((lab.now + 86400) * 1000) << 16
    removal = lab.tag("t0", None)
    await lab.hears(removal, ahead_until=lab.now + 86000)
    engine = lab.engine()
    await engine.once(())
    assert await lab.points_to("t0") == image
    lab.now += 86400
    await engine.once(())
    assert (engine.report(PEER).refused_clock, engine.report(PEER).removals) == (0, 1)
    lab.now += 601
    assert (await engine.once(())).removed == 1
    assert await lab.points_to("t0") is None


async def test_too_many_removals_at_once_are_refused_with_their_number_until_forced(lab: Lab) -> None:
    images = await filled(lab, 10)
    await removed(lab, images[:4])
    lab.now += 601
    engine = lab.engine()
    report = await engine.once(())
    assert report.removed == 0
    assert "would remove 4 of 10 images (40 %), more than 25 %" in report.refused[0]
    assert engine.report(PEER).removals_refused
    assert await lab.points_to("t0") == images[0]
    assert {one.action for one in await engine.plan()} == {"refuse"}
    assert (await engine.once((), force=True)).removed == 8
    assert await lab.points_to("t0") is None


async def test_removals_that_are_forced_wait_for_no_grace(lab: Lab) -> None:
    images = await filled(lab, 8)
    await removed(lab, images[:4])
    assert (await lab.engine().once(())).removed == 0
    assert (await lab.engine().once((), force=True)).removed > 0
    assert [await lab.points_to(f"t{number}") for number in range(4)] == [None] * 4


async def test_what_is_pinned_here_makes_no_removals_too_many(lab: Lab) -> None:
    images = await filled(lab, 8)
    for name in ("t0", "t1"):
        await lab.catalog.pin(ALPINE, Tag(name))
    await removed(lab, images[:3])
    lab.now += 601
    report = await lab.engine().once(())
    assert all("pinned here" in one for one in report.refused)
    assert await lab.points_to("t2") is None
    assert await lab.points_to("t0") == images[0]


async def test_what_is_pinned_here_is_not_removed_and_reported(lab: Lab) -> None:
    images = await filled(lab, 2)
    await lab.catalog.pin(ALPINE, Tag("t0"))
    await removed(lab, images[:1])
    lab.now += 601
    report = await lab.engine().once(())
    assert await lab.points_to("t0") == images[0]
    assert "pinned here" in report.refused[0]
    planned = {one.reference: one for one in await lab.engine().plan()}[f"{ALPINE}:t0"]
    assert (planned.action, "pinned here" in planned.reason) == ("refuse", True)


async def test_a_peer_that_answers_401_or_404_to_everything_removes_nothing(lab: Lab) -> None:
    images = await filled(lab, 3)
    for image in images:
        lab.peer.errors[image] = ManifestUnknown("401")
    new = lab.peer.image("never comes")
    lab.peer.errors[new] = ManifestUnknown("404")
    await lab.hears(lab.tag("new", new))
    lab.now += 601
    assert (await lab.engine().once((), force=True)).removed == 0
    for number, image in enumerate(images):
        assert await lab.points_to(f"t{number}") == image
