"""What `why` tells of other regions: where a tag comes from, what waits, what the filter leaves out, who lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entrepot.config import Config, UpstreamConfig
from entrepot.config.model import PeerConfig
from entrepot.explaining import why
from entrepot.reasons import Why
from entrepot.regional_facts import gather
from entrepot.regional_reasons import PeerReason, Regional, WaitingRecord, regional_words, why_unchosen
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Reference, Repository, Tag
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.inventory import Inventory
from proxy.store.records import Proof
from proxy.store.remote import put_waiting
from proxy.store.store import Store
from proxy.store.writer import Transaction
from sync.reports import ConflictReport, PeerReport

ALPINE = Repository("docker.io", "library/alpine")
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
TYPE = "application/vnd.oci.image.manifest.v1+json"
US = PeerConfig(name="us-east", url="https://us.mirror.example")
HELD = PeerReport(name="us-east", url=US.url, state="held", held="outside its window until 22:00")
SOON = 4e9


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = await Store.open(tmp_path)
    yield made
    await made.close()


def config_of(store: Store, peer: PeerConfig = US) -> Config:
    upstreams = (UpstreamConfig(name="docker.io", url="https://registry-1.docker.io"),)
    return Config(data=Path("/nowhere"), region="eu-west", upstreams=upstreams, peers=(peer,))


def tag_change(digest: Digest | None, version: int = 1 << 16) -> TagChange:
    return TagChange(0, 0, "3", version, str(digest) if digest is not None else None, TYPE, 500, "us-east", 1e9, 1e9)


async def wait_for(store: Store, record: TagChange | MembershipChange, error: str | None = None) -> None:
    """Let the record of us-east wait, as if its feed had told it."""

    def write(transaction: Transaction) -> None:
        execute = transaction.connection.execute
        execute("INSERT OR IGNORE INTO peer (id, name) VALUES (7, 'us-east')")
        key = f"t:{record.name}" if isinstance(record, TagChange) else f"m:{record.digest}"
        put_waiting(transaction, 7, hash(key), transaction.repository(ALPINE), key, record, 1e9)
        execute("UPDATE pending SET error = ?, tries = ?, next_at = ?", (error, int(error is not None), SOON))

    await store.catalog.write(write)


async def told(store: Store, reference: Reference, config: Config, *reports: PeerReport) -> Why:
    catalog = store.catalog
    inventory = Inventory(catalog)
    tag = None if isinstance(reference, Digest) else await inventory.tag(ALPINE, reference)
    digest = Digest(tag.digest) if tag is not None and tag.digest is not None else None
    regions = await gather(catalog, config, ALPINE, reference, digest, reports)
    return await why(inventory, config, ALPINE, reference, catalog.named_in, None, None, regions)


def said(why: Why, words: str) -> bool:
    return any(words in line for line in why.because)


async def test_an_image_that_is_late_is_told_with_what_failed_and_when_it_is_tried_again(store: Store) -> None:
    await wait_for(store, tag_change(NEW), "us-east does not answer")
    found = await told(store, Tag("3"), config_of(store), HELD)
    assert said(found, f"it is known that us-east has {NEW}, which is to be fetched; its size is not known yet")
    assert said(found, "tried 1 time, again on 2096-10-02 07:06:40Z; it failed as us-east does not answer")
    assert said(found, "nothing is fetched ahead from us-east now: outside its window until 22:00")
    assert found.sources[0] == "region us-east"
    assert found.regions is not None
    assert (found.regions.waiting[0].kind, found.regions.waiting[0].error) == ("image", "us-east does not answer")
    assert json.loads(msgspec.json.encode(found))["regions"]["peers"][0]["held"] == HELD.held


async def test_what_waits_for_another_tag_is_not_told(store: Store) -> None:
    await wait_for(store, tag_change(NEW))
    found = await told(store, Tag("4"), config_of(store))
    assert found.regions is not None
    assert found.regions.waiting == ()
    assert (await told(store, NEW, config_of(store))).regions.waiting[0].peer == "us-east"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (HELD, "us-east removed it; it goes here once the grace is over"),
        (msgspec.structs.replace(HELD, removals_refused="40 of 100 images"), "it stays here: 40 of 100 images"),
    ],
)
async def test_a_removal_that_waits_is_told(store: Store, report: PeerReport, words: str) -> None:
    await store.catalog.put_tag(ALPINE, Tag("3"), Descriptor(TYPE, OLD, 500), 1e9)
    await wait_for(store, tag_change(None))
    found = await told(store, Tag("3"), config_of(store), report)
    assert found.regions is not None
    assert found.regions.waiting[0].kind == "removal"
    assert said(found, words)


async def test_a_version_of_a_clock_ahead_is_told_with_its_time(store: Store) -> None:
    await wait_for(store, tag_change(NEW, int(5e9 * 1000) << 16))
    assert said(await told(store, Tag("3"), config_of(store)), "by a clock ahead of ours: taken over on 2096-10-02")


async def test_a_referrer_that_waits_is_told_under_its_digest(store: Store) -> None:
    await wait_for(store, MembershipChange(0, 0, str(NEW), 1 << 16, False, Proof.SYNCED, 1e9, str(OLD)))
    assert said(await told(store, NEW, config_of(store)), f"us-east has {NEW}, which is to be fetched")


async def test_a_tag_of_another_region_names_it_and_what_lost_against_it(store: Store) -> None:
    await store.catalog.put_tag(ALPINE, Tag("3"), Descriptor(TYPE, OLD, 500), 1e9)

    def write(transaction: Transaction) -> None:
        transaction.connection.execute("UPDATE tag SET origin = 'us-east'")
        values = (transaction.repository(ALPINE), "3", NEW, 1, "eu-west", OLD, "us-east", 1e9)
        transaction.connection.execute("INSERT INTO conflict VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    await store.catalog.write(write)
    found = await told(store, Tag("3"), config_of(store))
    assert said(found, "what the tag is comes from region us-east, which saw it on 2001-09-09 01:46:40Z")
    assert said(found, f"{OLD} of us-east counts, {NEW} of eu-west is kept under its digest")


async def test_of_a_removal_it_is_told_which_region_it_came_from(store: Store) -> None:
    await store.catalog.put_tag(ALPINE, Tag("3"), Descriptor(TYPE, OLD, 500), 1e9)
    change = await store.catalog.tag_change(ALPINE, Tag("3"))
    assert change is not None
    gone = msgspec.structs.replace(change, digest=None, origin="us-east", version=change.version + 1, observed_at=1e9)
    await store.catalog.apply(ALPINE, [gone])
    assert said(await told(store, Tag("3"), config_of(store)), "region us-east removed it, on 2001-09-09 01:46:40Z")


async def test_what_stays_though_it_was_removed_there_is_told_with_the_reason(store: Store) -> None:
    kept = WaitingRecord("us-east", "removal", None, 1e9, 0, 0.0, "it is pinned here: `entrepot unpin` it")
    (line,) = regional_words(Regional(waiting=(kept,), peers=(PeerReason("us-east"),)), whole=True)
    assert line.endswith("us-east removed it; it stays here: it is pinned here: `entrepot unpin` it")


async def test_without_other_regions_nothing_is_told_of_them(store: Store) -> None:
    await store.catalog.put_tag(ALPINE, Tag("3"), Descriptor(TYPE, OLD, 500), 1e9)
    alone = msgspec.structs.replace(config_of(store), peers=(), region=store.catalog.region)
    assert (await told(store, Tag("3"), alone)).regions is None


@pytest.mark.parametrize(
    ("changed", "reference", "reason"),
    [
        ({}, Tag("3"), None),
        (
            {"repositories": ("ghcr.io/**",)},
            Tag("3"),
            "repositories (ghcr.io/**) does not name docker.io/library/alpine",
        ),
        ({"tags": (">=3.18", "latest")}, Tag("3.17"), "tags (>=3.18, latest) does not choose 3.17"),
        ({"tags": (">=3.18", "latest")}, Tag("3.20"), None),
        ({"newest": 3}, Tag("3"), "only the newest 3 of the tags"),
        ({"tags": ("3.*",), "newest": 3}, OLD, "only what the tags 3.*, the newest 3 lead to"),
        ({"platforms": ("linux/amd64",)}, Tag("3"), "of its platforms only linux/amd64"),
    ],
)
def test_the_filter_that_leaves_it_out_is_named(
    changed: dict[str, Any], reference: Reference, reason: str | None
) -> None:
    found = why_unchosen(msgspec.structs.replace(US, **changed), ALPINE, reference)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_what_is_here_whole_needs_no_excuse_and_a_wait_of_a_peer_no_filter() -> None:
    reasons = PeerReason("us-east", unchosen="tags (3.*) does not choose 4", held="paused", failing="it is silent")
    regional = Regional(peers=(reasons,))
    assert regional_words(regional, whole=True) == ()
    assert len(regional_words(regional, whole=False)) == 3
    waiting = WaitingRecord("us-east", "image", NEW, 1e9, 0, 0.0, None, 2048)
    lines = regional_words(Regional(waiting=(waiting,), peers=(reasons,)), whole=True)
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "nothing is fetched ahead from us-east now",
        "us-east cannot be asked what is new there",
    ]
    assert "2048 bytes of it are missing" in lines[0]


def test_a_conflict_is_told_with_both_sides() -> None:
    conflict = ConflictReport(
        reference="a:1", winner=NEW, winner_region="us", loser=OLD, loser_region="eu", found_at=1e9
    )
    (line,) = regional_words(Regional(conflicts=(conflict,)), whole=True)
    assert f"{NEW} of us counts, {OLD} of eu is kept" in line
