"""Tags: fresh, revalidated, stale, gone (P35, P44)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metrics.events import RequestFinished, TagRevalidated, ignore
from proxy.cache.readthrough import open_cache
from proxy.cache.tags import TagPolicy
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Repository, Tag
from tests.cache.lab import ALPINE, HUB, LIMITS, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream
from tests.upstream.support import source_of

REPO = "library/alpine"
OLD = make_image([blob(1000, seed=1)])
NEW = make_image([blob(1000, seed=2)])
ALWAYS_ASK = TagPolicy(ttl=0, stale_while_revalidate=0)


@pytest.fixture
async def asking(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Lab]:
    """A mirror that revalidates on every request."""
    async with laboratory(tmp_path / "asking", {HUB: [upstream]}, policy=ALWAYS_ASK) as running:
        yield running


async def pull(lab: Lab) -> None:
    """Bring every blob of OLD into the cache, so that it can be served without upstream."""
    for data in OLD.blobs:
        await lab.cache.ensure_blob(ALPINE, Digest.of(data))


async def test_a_fresh_tag_asks_nobody(lab: Lab, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    for _ in range(3):
        status, headers, body = await lab.get(lab.manifest_url("1"))
        assert (status, body) == (200, OLD.body)
        assert headers["Docker-Content-Digest"] == OLD.digest
        assert headers["Content-Type"] == OLD.media_type
    assert upstream.count(method="HEAD", contains="/manifests/") == 1
    assert upstream.count(method="GET", contains="/manifests/") == 1


async def test_revalidation_is_a_head_and_only_a_new_digest_is_fetched(
    asking: Lab, upstream: FakeUpstream
) -> None:  # P35
    OLD.publish(upstream, REPO, "1")
    for _ in range(3):
        assert (await asking.get(asking.manifest_url("1")))[2] == OLD.body
    assert upstream.count(method="GET", contains="/manifests/") == 1
    NEW.publish(upstream, REPO, "1")
    assert (await asking.get(asking.manifest_url("1")))[2] == NEW.body
    assert upstream.count(method="GET", contains="/manifests/") == 2


async def test_a_tag_of_what_another_repository_brought_costs_one_head(lab: Lab, upstream: FakeUpstream) -> None:
    other = Repository(HUB, "library/other")  # P35, P43: what the tag is said to be is proof enough
    for repository in (ALPINE, other):
        OLD.publish(upstream, repository.path, "1")
        assert (await lab.get(lab.manifest_url("1", repository)))[2] == OLD.body
    assert [request.method for request in upstream.select(contains="library/other/manifests/")] == ["HEAD"]


async def test_many_who_ask_for_one_tag_cause_one_question(asking: Lab, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    upstream.delay_headers = 2
    answers = await asyncio.gather(*(asking.get(asking.manifest_url("1")) for _ in range(50)))
    assert all(answer[2] == OLD.body for answer in answers)
    assert upstream.count(method="HEAD", contains="/manifests/") == 1
    assert upstream.count(method="GET", contains="/manifests/") == 1
    outcomes = [event.outcome for event in asking.of(RequestFinished)]
    assert sorted(outcomes) == ["joined"] * 49 + ["miss"]


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_stale_serves_with_a_warning_while_upstream_fails(
    asking: Lab, upstream: FakeUpstream, status: int
) -> None:  # P44, P16
    OLD.publish(upstream, REPO, "1")
    await asking.get(asking.manifest_url("1"))
    await pull(asking)
    upstream.status_for = lambda request: status
    answer, headers, body = await asking.get(asking.manifest_url("1"))
    assert (answer, body) == (200, OLD.body)
    assert headers["Warning"].startswith('299 - "')


async def test_stale_serves_while_upstream_cannot_be_reached(asking: Lab, upstream: FakeUpstream) -> None:  # P44
    OLD.publish(upstream, REPO, "1")
    await asking.get(asking.manifest_url("1"))
    await pull(asking)
    await upstream.stop_listening()
    upstream.cut_connections()
    assert (await asking.get(asking.manifest_url("1")))[2] == OLD.body


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_stale_never_serves_after_an_answer_that_says_no(
    asking: Lab, upstream: FakeUpstream, status: int
) -> None:  # P44, P34
    OLD.publish(upstream, REPO, "1")
    await asking.get(asking.manifest_url("1"))
    await pull(asking)
    upstream.status_for = lambda request: status
    answer, _, body = await asking.get(asking.manifest_url("1"))
    assert answer == 404
    assert b"MANIFEST_UNKNOWN" in body


async def test_stale_without_its_blobs_is_not_served(asking: Lab, upstream: FakeUpstream) -> None:  # P27
    OLD.publish(upstream, REPO, "1")
    await asking.get(asking.manifest_url("1"))
    upstream.status_for = lambda request: 500
    assert (await asking.get(asking.manifest_url("1")))[0] == 503


async def test_an_incomplete_manifest_is_served_again_once_the_upstream_is_back(
    lab: Lab, upstream: FakeUpstream
) -> None:  # P27
    OLD.publish(upstream, REPO, "1")
    await lab.get(lab.manifest_url(OLD.digest))
    await upstream.stop_listening()
    upstream.cut_connections()
    assert (await lab.get(lab.manifest_url("2")))[0] == 503
    assert (await lab.get(lab.manifest_url(OLD.digest) + "?ns=docker.io"))[0] == 503
    await upstream.listen_again()
    await asyncio.sleep(LIMITS.quiet)
    assert (await lab.get(lab.manifest_url(OLD.digest) + "?ns=docker.io"))[2] == OLD.body


async def test_a_slow_revalidation_does_not_hold_up_a_known_tag(tmp_path: Path, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    policy = TagPolicy(ttl=0, stale_while_revalidate=3600)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=policy) as lab:
        await lab.get(lab.manifest_url("1"))
        await pull(lab)
        upstream.delay_headers = 60
        async with asyncio.timeout(5):
            status, headers, body = await lab.get(lab.manifest_url("1"))
        assert (status, body) == (200, OLD.body)
        assert "Warning" in headers


async def test_a_tag_that_is_gone_is_not_served_because_the_answer_was_slow(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P44
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=TagPolicy(ttl=0)) as lab:
        await lab.get(lab.manifest_url("1"))
        await pull(lab)
        upstream.manifests[REPO].clear()
        upstream.delay_headers = 3
        first = await lab.get(lab.manifest_url("1"))
        assert first[0] == 200  # nobody knows better yet
        await lab.until(lambda: any(event.outcome == "gone" for event in lab.of(TagRevalidated)))
        assert (await lab.get(lab.manifest_url("1")))[0] == 404
    upstream.delay_headers = 0
    upstream.status_for = lambda request: 500
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        assert (await lab.get(lab.manifest_url("1")))[0] == 503  # nor after a restart
    upstream.status_for = None
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        assert (await lab.get(lab.manifest_url("1")))[0] == 200
        upstream.status_for = lambda request: 500
        assert (await lab.get(lab.manifest_url("1")))[0] == 200


async def test_a_question_that_a_reload_ends_is_an_answer_and_no_cut_connection(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        await lab.get(lab.manifest_url("1"))
        await pull(lab)
        upstream.delay_headers = 60
        async with (
            source_of(upstream.url, limits=LIMITS) as source,
            open_cache(lab.store, {HUB: [source]}, emit=ignore, policy=lambda name: ALWAYS_ASK) as old,
        ):
            asked = len(upstream.requests)
            known = asyncio.create_task(old.manifest(ALPINE, Tag("1")))
            unknown = asyncio.create_task(old.manifest(ALPINE, Tag("2")))
            listed = asyncio.create_task(old.tags(ALPINE, None, None))
            await upstream.wait_for(asked + 3)
        assert (await known).outcome == "stale"
        assert (await listed).outcome == "stale"
        with pytest.raises(Unavailable, match="ask again"):
            await unknown


async def test_an_upstream_that_hangs_does_not_keep_an_old_tag_back(
    tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:  # P26, P44
    monkeypatch.setattr("proxy.cache.tags.PATIENT_SECONDS", 0.3)
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK) as lab:
        await lab.get(lab.manifest_url("1"))
        await pull(lab)
        upstream.delay_headers = 30
        status, headers, body = await lab.get(lab.manifest_url("1"))
        assert (status, body) == (200, OLD.body)
        assert "Warning" in headers


async def test_a_rate_limited_upstream_without_a_cached_answer_says_when_to_come_back(
    lab: Lab, upstream: FakeUpstream
) -> None:  # P16, P35
    upstream.status_for = lambda request: 429
    status, _, body = await lab.get(lab.manifest_url("1"))
    assert status == 429
    assert b"TOOMANYREQUESTS" in body


async def test_offline_serves_what_is_complete_and_asks_nobody(tmp_path: Path, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    NEW.publish(upstream, REPO, "2")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        await lab.get(lab.manifest_url("1"))
        await pull(lab)
        await lab.get(lab.manifest_url("2"))
    asked = len(upstream.requests)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=ALWAYS_ASK, offline=True) as lab:
        assert (await lab.get(lab.manifest_url("1")))[2] == OLD.body
        assert (await lab.get(lab.manifest_url(OLD.digest)))[2] == OLD.body
        assert (await lab.get(lab.manifest_url("2")))[0] == 503  # its blobs are not here (P27)
        assert (await lab.get(lab.manifest_url("3")))[0] == 503
    assert len(upstream.requests) == asked


async def test_a_fresh_tag_without_its_blobs_is_not_served_while_nobody_has_reached_the_upstream(
    tmp_path: Path, upstream: FakeUpstream
) -> None:  # P27
    OLD.publish(upstream, REPO, "1")
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        assert (await lab.get(lab.manifest_url("1")))[0] == 200
    await upstream.stop_listening()
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        for reference in ("1", OLD.digest):
            assert (await lab.get(lab.manifest_url(reference)))[0] == 503
    await upstream.listen_again()
    async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
        for _ in range(3):
            assert (await lab.get(lab.manifest_url("1")))[2] == OLD.body
    assert upstream.select(contains="/manifests/")[-1].method == "HEAD"
    assert upstream.count(contains="/manifests/") == 3  # the last one for all three


async def test_tags_outlive_a_restart(tmp_path: Path, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    for _ in range(2):
        async with laboratory(tmp_path / "data", {HUB: [upstream]}) as lab:
            assert (await lab.get(lab.manifest_url("1")))[2] == OLD.body
    assert upstream.count(method="GET", contains="/manifests/") == 1


async def test_a_hit_is_answered_again_until_the_tag_moves(tmp_path: Path, upstream: FakeUpstream) -> None:
    OLD.publish(upstream, REPO, "1")
    policy = TagPolicy(ttl=2, stale_while_revalidate=0)
    async with laboratory(tmp_path / "data", {HUB: [upstream]}, policy=policy) as lab:
        for _ in range(5):
            assert (await lab.get(lab.manifest_url("1")))[2] == OLD.body
        NEW.publish(upstream, REPO, "1")
        await asyncio.sleep(2.05)
        for _ in range(3):
            assert (await lab.get(lab.manifest_url("1")))[2] == NEW.body
        assert (await lab.get(lab.manifest_url(OLD.digest)))[2] == OLD.body
