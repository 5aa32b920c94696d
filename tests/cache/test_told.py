"""What a mirror tells of itself: why a download failed, how long a source was waited for, how old a stale answer is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from metrics.events import FillFinished, FillJoined, RequestFinished, StaleServed
from proxy.cache.endings import outcome_of, reason_of
from proxy.cache.tags import TagPolicy
from proxy.cache.waiting import Waits
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, BlobUnknown, Denied, TooManyRequests, Unavailable
from proxy.store.errors import NoRoom
from proxy.upstream.failures import BrokeOff, Passing, Resting, Unreached
from tests.cache.lab import ALPINE, HUB, Lab, laboratory
from tests.support.contents import blob, make_image
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
MIB = 1 << 20
DELAY = 0.2


def refuse(status: int) -> Callable[[FakeUpstream], None]:
    return lambda upstream: setattr(upstream, "status_for", lambda request: status)


def cut_short(upstream: FakeUpstream) -> None:
    upstream.die_at, upstream.die_once = 1000, False


def spoil(upstream: FakeUpstream) -> None:
    upstream.corrupt = {100: 1}


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        (refuse(503), "failed", "status"),
        (refuse(429), "failed", "status"),
        (refuse(404), "failed", "missing"),
        (refuse(403), "failed", "denied"),
        (cut_short, "failed", "short"),
        (spoil, "corrupt", "corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_download_that_fails_says_why(
    tmp_path: Path, upstream: FakeUpstream, fault: Callable[[FakeUpstream], None], outcome: str, reason: str
) -> None:
    digest = upstream.add_blob(REPO, blob(100_000))
    fault(upstream)
    async with laboratory(tmp_path / "lab", {HUB: [upstream]}, patience=0.1) as lab:
        await lab.get_short(lab.blob_url(digest))
        await lab.until(lambda: bool(lab.of(FillFinished)))
        told = lab.of(FillFinished)[0]
        assert (told.outcome, told.reason) == (outcome, reason)


async def test_a_download_that_is_committed_has_no_reason(lab: Lab, upstream: FakeUpstream) -> None:
    await lab.get(lab.blob_url(upstream.add_blob(REPO, blob(1000))))
    await lab.committed()
    assert lab.of(FillFinished)[0].reason == ""


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Passing("", reason="timeout", unreached=True), "failed", "timeout"),
        (Passing("", reason="network"), "failed", "network"),
        (Passing("", reason="502"), "failed", "status"),
        (Unreached(""), "failed", "network"),
        (Resting(""), "failed", "network"),
        (BrokeOff(""), "failed", "short"),
        (BrokeOff("", reason="timeout"), "failed", "timeout"),
        (TooManyRequests(""), "failed", "status"),
        (BlobUnknown(""), "failed", "missing"),
        (Denied(""), "failed", "denied"),
        (NoRoom("full"), "failed", "store"),
        (OSError(28, "No space left on device"), "failed", "store"),
        (BadContent(""), "corrupt", "corrupt"),
        (asyncio.CancelledError(), "abandoned", "abandoned"),
        (Unavailable(""), "failed", "other"),
        (KeyError(), "failed", "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_error_has_a_word(error: BaseException, outcome: str, reason: str) -> None:
    assert (outcome_of(error), reason_of(error)) == (outcome, reason)


async def test_of_a_miss_the_wait_for_the_upstream_is_told_and_of_late_joiners_and_hits_none(
    lab: Lab, upstream: FakeUpstream
) -> None:
    data = blob(4 * MIB)
    digest = upstream.add_blob(REPO, data)
    upstream.delay_headers, upstream.stall_at = DELAY, 2 * MIB
    first = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    late = asyncio.create_task(lab.get(lab.blob_url(digest)))
    await lab.until(lambda: bool(lab.of(FillJoined)))
    upstream.go_on()
    assert (await first)[2] == (await late)[2] == data
    await lab.committed()
    await lab.get(lab.blob_url(digest))
    miss, joined, hit = sorted(lab.of(RequestFinished), key=lambda event: event.started)
    assert [event.outcome for event in (miss, joined, hit)] == ["miss", "joined", "hit"]
    assert DELAY <= miss.upstream_wait <= miss.first_byte
    assert joined.upstream_wait == hit.upstream_wait == 0


def test_who_joins_before_the_upstream_answers_has_waited_since_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0, 20.0, 21.0, 30.0])
    monkeypatch.setattr("proxy.cache.waiting.monotonic", lambda: next(clock))
    waits = Waits()
    for _ in range(2):
        with waits.asking():
            pass
    waits.end()  # of nothing
    assert waits.within(9.0, 25.0) == 5.0
    assert waits.within(12.0, 15.0) == 2.0
    assert waits.within(14.0, 20.0) == 0.0
    waits.begin()
    assert waits.within(29.0, 33.0) == 3.0


async def test_of_a_relayed_range_the_wait_for_its_source_is_told(lab: Lab, upstream: FakeUpstream) -> None:
    digest = upstream.add_blob(REPO, blob(12 * MIB))
    upstream.stall_at = MIB
    whole = asyncio.create_task(lab.get_short(lab.blob_url(digest)))
    await asyncio.wait_for(upstream.stalled.wait(), 30)
    upstream.delay_headers, upstream.stall_at = DELAY, None
    await lab.get(lab.blob_url(digest), {"Range": f"bytes={12 * MIB - 100}-{12 * MIB - 1}"})
    (relayed,) = [event for event in lab.of(RequestFinished) if event.outcome == "relayed"]
    assert DELAY <= relayed.upstream_wait <= relayed.first_byte
    upstream.go_on()
    await whole


async def test_every_stale_answer_tells_how_old_it_is(tmp_path: Path, upstream: FakeUpstream) -> None:  # P44
    image = make_image([blob(1000)])
    image.publish(upstream, REPO, "1")
    policy = TagPolicy(ttl=0, stale_while_revalidate=0)
    async with laboratory(tmp_path / "lab", {HUB: [upstream]}, policy=policy) as lab:
        await lab.get(lab.manifest_url("1"))
        for data in image.blobs:
            await lab.cache.ensure_blob(ALPINE, Digest.of(data))
        assert not lab.of(StaleServed)
        upstream.status_for = lambda request: 503
        for _ in range(3):  # one from the cache, the others given again
            await lab.get(lab.manifest_url("1"))
        stale = [event for event in lab.of(RequestFinished) if event.outcome == "stale"]
        ages = [event.age for event in lab.of(StaleServed)]
        assert len(ages) == len(stale) == 3
        assert 0 < ages[0] < ages[1] < ages[2] < 60


async def test_answers_given_again_are_alike_only_where_nothing_but_who_asks_differs(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    for tag in ("1", "2"):
        make_image([blob(1000, seed=int(tag))]).publish(upstream, "library/alpine", tag)
    async with laboratory(tmp_path / "lab", {HUB: [upstream]}) as lab:
        for tag in ("1", "2"):
            for method in ("GET", "GET", "HEAD", "GET", "HEAD"):
                await lab.get(lab.manifest_url(tag), method=method)
        told = [event for event in lab.of(RequestFinished) if event.alike]
        assert len(told) == 8
        assert len({event.alike for event in told}) == 4
        assert len({(event.alike, event.method, event.reference) for event in told}) == 4
