"""A tag's new digest is served once it has been seen for its cooldown; until then the last one that matured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given, strategies as st

from metrics.events import TagRevalidated
from proxy.cache.cooldown import decide, matures_in
from proxy.cache.tags import TagPolicy
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.media import OCI_MANIFEST
from proxy.store.records import TagRecord
from tests.cache.lab import HUB, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
OLD, NEW, NEWER = (make_image([blob(1000, seed=seed)]) for seed in (1, 2, 3))
HOUR = TagPolicy(ttl=0, stale_while_revalidate=0, cooldown=3600)
RECORD = TagRecord(Descriptor(OCI_MANIFEST, OLD.digest, 1), 1, "", 0.0, 0.0)


def test_the_first_digest_ever_seen_is_served_at_once() -> None:
    assert decide(None, OLD.digest, 3600, 0) == "move"


@given(seen=st.floats(0, 1e9), later=st.floats(0, 1e5), cooldown=st.floats(1, 1e5))
def test_a_digest_is_served_exactly_when_it_has_been_seen_for_the_cooldown(
    seen: float, later: float, cooldown: float
) -> None:
    record = replace(RECORD, pending=NEW.digest, pending_at=seen)
    now = seen + later
    assert decide(record, NEW.digest, cooldown, now) == ("move" if now - seen >= cooldown else "held")
    assert decide(record, NEWER.digest, cooldown, now) == "held"
    assert decide(record, OLD.digest, cooldown, now) == "unchanged"
    assert decide(record, NEWER.digest, 0, now) == "move"
    assert matures_in(record, cooldown, now) == seen + cooldown - now


async def body(lab: Lab, reference: str = "1") -> bytes:
    return (await lab.get(lab.manifest_url(reference)))[2]


async def test_the_old_digest_is_served_until_the_new_one_has_matured(tmp_path: Path, upstream: FakeUpstream) -> None:
    seconds = [1_000_000.0]
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=HOUR) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        assert await body(lab) == OLD.body
        NEW.publish(upstream, REPO, "1")
        seconds[0] += 10
        assert await body(lab) == OLD.body
        assert await body(lab, NEW.digest) == NEW.body  # who names the digest knows what they do
        assert await body(lab) == OLD.body
        seconds[0] += 3000
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=HOUR) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        assert await body(lab) == OLD.body  # since when it was seen outlives a restart
        seconds[0] += 599
        assert await body(lab) == OLD.body
        seconds[0] += 1
        assert await body(lab) == NEW.body
        assert [event.outcome for event in lab.of(TagRevalidated)] == ["held", "held", "moved"]


async def test_a_digest_that_was_taken_back_begins_anew(tmp_path: Path, upstream: FakeUpstream) -> None:
    seconds = [1_000_000.0]
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=HOUR) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        for image in (OLD, NEW, OLD, NEW, NEWER, NEW):
            image.publish(upstream, REPO, "1")
            assert await body(lab) == OLD.body
            seconds[0] += 3500
        seconds[0] += 100
        assert await body(lab) == NEW.body


async def test_a_tag_is_asked_about_when_its_pending_digest_matures_and_not_before(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    seconds = [1_000_000.0]
    policy = TagPolicy(ttl=1000, cooldown=1500)
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=policy) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        url = lab.manifest_url("1") + "?ns=docker.io&n="  # another target each time: not from the hot table
        for number, (seconds_on, expected, asked) in enumerate(
            [(0, OLD, 1), (1000, OLD, 2), (999, OLD, 2), (1, OLD, 3), (499, OLD, 3), (1, NEW, 4)]
        ):
            seconds[0] += seconds_on
            assert (await lab.get(f"{url}{number}"))[2] == expected.body
            assert upstream.count(method="HEAD", contains="/manifests/1") == asked
            NEW.publish(upstream, REPO, "1")


async def test_a_digest_is_never_taken_over_while_the_upstream_cannot_confirm_it(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P44
    seconds = [1_000_000.0]
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=HOUR) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        await body(lab)
        for data in OLD.blobs:
            await lab.get(lab.blob_url(Digest.of(data)))
        NEW.publish(upstream, REPO, "1")
        await body(lab)
        seconds[0] += 4000
        upstream.status_for = lambda request: 500
        status, headers, got = await lab.get(lab.manifest_url("1"))
        assert (status, got) == (200, OLD.body)
        assert "Warning" in headers


async def test_a_clock_that_went_back_begins_the_cooldown_anew_and_does_not_hold_for_ever(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    seconds = [9_000_000.0]  # wrong, and put right later
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=HOUR) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        await body(lab)
        NEW.publish(upstream, REPO, "1")
        assert await body(lab) == OLD.body
        seconds[0] = 1_000_000.0
        assert await body(lab) == OLD.body
        seconds[0] += 3600
        assert await body(lab) == NEW.body


async def test_a_tag_that_was_gone_by_a_wrong_clock_is_served_stale_again_once_it_is_confirmed(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P44
    seconds = [9_000_000.0]
    OLD.publish(upstream, REPO, "1")
    policy = TagPolicy(ttl=0, stale_while_revalidate=0, negative_ttl=0)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=policy) as lab:
        lab.cache._tags._now = lambda: seconds[0]
        await body(lab)
        for data in OLD.blobs:
            await lab.get(lab.blob_url(Digest.of(data)))
        kept = upstream.manifests.pop(REPO)
        assert (await lab.get(lab.manifest_url("1")))[0] == 404
        upstream.manifests[REPO] = kept
        seconds[0] = 1_000_000.0
        assert await body(lab) == OLD.body
        upstream.status_for = lambda request: 500
        assert await body(lab) == OLD.body
