"""What a peer may answer or ask, by mistake or by malice: heard with a clear error, and nothing lost or without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from metrics.events import PeerFailed
from proxy.oci.errors import BadContent, Denied, RegistryError, Unauthorized, Unavailable
from proxy.oci.names import Repository
from proxy.regions.peer import Refused
from proxy.regions.scope import Scope
from proxy.store.errors import StoreError
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.ranges import SPAN, Interval
from proxy.store.records import Proof
from sync import comparing, fetching, following
from sync.exchange import SameCatalog
from sync.packing import MARK_BYTES, SUM_BYTES, asked, pack_marks, unpack_marks
from sync.regional_records import (
    MOST_BODY,
    MOST_GLOBS,
    PROTOCOL,
    RANGES,
    RangesQuestion,
    RangesTold,
    RootsQuestion,
    RootsTold,
    decode_question,
    decode_ranges,
    decode_roots,
    encode,
    mesh_name,
    read_scope,
    spell_scope,
)
from tests.store.contents import ALPINE, BUSYBOX, TYPES, digest
from tests.sync.regional import ALL, Balanced, Link, Make, Region, fingerprint, points

Answer = Callable[[str, bytes | None], bytes | None]
KEY = mesh_name(b"a mesh key")
WHOLE = Interval(0, SPAN - 1)
NAMED = ("docker.io", "library/alpine")
QUESTION = RangesQuestion(PROTOCOL, [], 1, ["a"], asked([WHOLE], [{1: 2}]))
TAG = TagChange(5, 0, "latest", 7 << 16, str(digest("one")), TYPES["image"], 3, "a", 1.0, 1.0)
MEMBER = MembershipChange(6, 0, str(digest("one")), 7 << 16, False, Proof.FETCHED, 1.0, "")
ROOTS = RootsTold(PROTOCOL, "a", "epoch", 9, 9, KEY, fingerprint=(1, 2, 3), repositories=[NAMED], records=[TAG, MEMBER])
TOLD = RangesTold(PROTOCOL, "a", "epoch", 9, KEY, [b"\0" * 16 * SUM_BYTES], 1, None, b"", [NAMED], [TAG, MEMBER])


@settings(max_examples=40)
@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=20), skip=st.integers(0, 20))
def test_damaged_answers_are_read_as_nothing_else_than_bad_content(cut: int, junk: bytes, skip: int) -> None:
    for told, decode in ((ROOTS, decode_roots), (TOLD, lambda body, scope: decode_ranges(body, QUESTION, scope))):
        whole = encode(told)
        at = cut % len(whole)
        with suppress(BadContent):
            decode(whole[:at] + junk + whole[at + skip :], ALL)
        if at:
            with pytest.raises(BadContent, match="unreadable"):
                decode(whole[:at], ALL)


@given(st.binary(max_size=300))
def test_a_question_of_any_bytes_is_answered_or_refused(body: bytes) -> None:
    with suppress(ValueError):
        decode_question(body)
    with suppress(ValueError):
        RootsQuestion.parse(body.decode("latin-1"))


@given(st.dictionaries(st.integers(0, SPAN - 1), st.integers(0, SPAN - 1), max_size=20))
def test_marks_are_read_as_they_were_written(marks: dict[int, int]) -> None:
    assert unpack_marks(pack_marks(marks)) == marks
    assert len(pack_marks(marks)) == MARK_BYTES * len(marks)


@given(st.lists(st.sampled_from(["*", "docker.io/**", "docker.io/library/*", "*/app", "ghcr.io/team-*"]), min_size=1))
def test_a_scope_is_asked_for_as_it_is_meant(globs: list[str]) -> None:
    scope = Scope.of(globs)
    question = RootsQuestion.parse(RootsQuestion({}, scope).target.partition("?")[2])
    assert read_scope(spell_scope(scope)).everything == scope.everything
    for repository in (ALPINE, BUSYBOX, Repository("ghcr.io", "team-a/app"), Repository("quay.io", "x")):
        assert question.scope.admits(repository) == scope.admits(repository)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"records": [MEMBER, TAG]}, "out of order"),
        ({"records": [msgspec.structs.replace(TAG, seq=10)]}, "out of order"),
        ({"next": 10}, "out of order"),
        ({"more": True}, "before its end"),
        ({"records": [msgspec.structs.replace(TAG, at=1)]}, "of no repository"),
        ({"records": [msgspec.structs.replace(MEMBER, root=None)]}, "no root"),
        ({"records": [msgspec.structs.replace(TAG, media_type=None)]}, "neither type nor size"),
        ({"records": [msgspec.structs.replace(TAG, observed_at=float("nan"))]}, "unreadable"),
        ({"records": [msgspec.structs.replace(MEMBER, proved_at=float("nan"))]}, "unreadable"),
        ({"repositories": [tuple(BUSYBOX)]}, "not asked for"),
        ({"repositories": [("docker.io", "../../etc")]}, "unreadable"),
        ({"protocol": PROTOCOL + 1}, "version 2"),
        ({"epoch": ""}, "unreadable"),
    ],
)
def test_an_answer_that_cannot_be_is_refused_with_what_is_wrong(told: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BadContent, match=wrong):
        decode_roots(encode(msgspec.structs.replace(ROOTS, **told)), Scope.of([str(ALPINE)]))


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"sums": []}, "other sums"),
        ({"sums": [b"\0" * 12]}, "other sums"),
        ({"done": 2}, "other ranges"),
        ({"gone": b"123"}, "other ranges"),
        ({"done": 0}, "compares nothing"),
        ({"upto": 3}, "ends outside"),
        ({"repositories": [tuple(BUSYBOX)]}, "not asked for"),
    ],
)
def test_a_comparison_of_something_else_is_refused(told: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BadContent, match=wrong):
        decode_ranges(encode(msgspec.structs.replace(TOLD, **told)), QUESTION, Scope.of([str(ALPINE)]))


def test_an_answer_that_is_nested_without_end_is_unreadable() -> None:
    nested = b"\x82\xa1a" + b"\x91" * 100_000 + b"\x01\xa1b\x01"
    with pytest.raises(BadContent, match="unreadable"):
        decode_roots(nested, ALL)
    with pytest.raises(ValueError, match="recursion"):
        decode_question(nested)


def test_an_answer_without_end_is_not_read() -> None:
    with pytest.raises(BadContent, match="longer"):
        decode_roots(b"\0" * (MOST_BODY + 1), ALL)


@pytest.mark.parametrize(
    ("asks", "wrong"),
    [
        ({"deeper": ["a", "a"]}, "twice"),
        ({"deeper": ["", "a"]}, "twice"),
        ({"deeper": ["a", "b0", "a1"]}, "twice"),
        ({"deeper": [f"{number:02x}" for number in range(17)], "levels": 2}, "sums"),
        ({"deeper": ["x"]}, "pattern|regex"),
        ({"compare": [(2, 1, b"")]}, "interval"),
        ({"compare": [(0, 1, b"123")]}, "interval"),
        ({"compare": [(0, 1, bytes(MARK_BYTES * 4097))]}, "marks"),
        ({"scope": [["a"] * (MOST_GLOBS + 1)]}, "globs"),
        ({"scope": [["a//b"]]}, "empty component"),
        ({"protocol": 0}, "version 0"),
    ],
)
def test_a_question_that_would_cost_too_much_is_refused(asks: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        decode_question(encode(msgspec.structs.replace(QUESTION, **asks)))


@pytest.mark.parametrize("scope", ["*", "docker.io/library/*", str(BUSYBOX), "**/busybox"])
async def test_whatever_is_asked_for_only_what_is_granted_is_told(make: Make, scope: str) -> None:
    a = await make("a")
    await a.saw("latest", "one")
    await a.saw("latest", "two", BUSYBOX)
    a.grant = Scope.of([str(ALPINE)])
    asking = Scope.of([scope])
    position = RootsQuestion({a.catalog.epoch: 0}, asking)
    roots, _ = decode_roots(await a.fetch(position.target, 5.0, None), ALL)
    question = RangesQuestion(PROTOCOL, spell_scope(asking), 2, [""], asked([WHOLE], [{}]))
    ranges, _ = decode_ranges(await a.fetch(RANGES, 5.0, encode(question)), question, ALL)
    assert {*map(tuple, roots.repositories), *map(tuple, ranges.repositories)} <= {tuple(ALPINE)}
    seen = 1 if asking.admits(ALPINE) else 0
    assert len(roots.records) == len(ranges.records) == seen
    assert roots.fingerprint is not None
    assert roots.fingerprint[2] == seen
    assert sum(any(ranges.sums[0][at : at + SUM_BYTES]) for at in range(0, 256 * SUM_BYTES, SUM_BYTES)) == seen


def lying(link: Link, giver: Region, change: Callable[[Any], Any], *, about: str) -> None:
    """Let a region change what it answers about `about`."""

    async def fetch(target: str, seconds: float, body: bytes | None) -> bytes:
        answer = await giver.fetch(target, seconds, body)
        if not target.startswith(about):
            return answer
        kind: Any = RangesTold if about == RANGES else RootsTold
        return encode(change(msgspec.msgpack.decode(answer, type=kind)))

    link.follower._fetch = fetch


async def followed(make: Make) -> tuple[Region, Region, Link]:
    a, b = await make("a"), await make("b")
    await asyncio.gather(*(a.saw(f"t{number}", f"image {number}") for number in range(40)))
    link = Link(b, a)
    await link.once()
    return a, b, link


async def test_a_sum_that_never_agrees_is_told_after_some_comparisons_and_nothing_is_lost(make: Make) -> None:
    a, b, link = await followed(make)
    rounds = a.rounds()
    lying(link, a, lambda told: msgspec.structs.replace(told, fingerprint=(1, 2, 3)), about="/sync/v1/changes")
    with pytest.raises(BadContent, match="other records than it tells of"):
        await link.follower.once()
    assert a.rounds() - rounds == following.MOST_RECONCILIATIONS
    assert await link.shadow() == await fingerprint(a)
    assert await points(b, "t7") == digest("image 7")


@pytest.mark.parametrize("told", [{"more": True}, {"epoch": "another"}, {"head": 0, "next": 0}])
async def test_an_answer_that_leads_nowhere_is_told_at_once(make: Make, told: dict[str, Any]) -> None:
    a, _, link = await followed(make)
    a.asked.clear()
    about = {**told, "fingerprint": None}
    lying(link, a, lambda one: msgspec.structs.replace(one, **about), about="/sync/v1/changes")
    with pytest.raises(BadContent, match="another catalog or position"):
        await link.follower.once()
    assert len(a.asked) == 1


async def test_pages_without_end_come_to_an_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, link = await followed(make)
    monkeypatch.setattr(following, "MOST_TURNS", 50)
    head = 10_000

    def further(told: RootsTold) -> RootsTold:
        nonlocal head
        head += 1
        return msgspec.structs.replace(told, next=head, head=head + 1, more=True, restart=False, fingerprint=None)

    lying(link, a, further, about="/sync/v1/changes")
    with pytest.raises(BadContent, match="without coming to an end"):
        await link.follower.once()
    assert len(a.asked) < 200


async def test_a_comparison_without_end_comes_to_an_end(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await make("a"), await make("b")
    await a.saw("latest", "one")
    link = Link(b, a)
    monkeypatch.setattr(comparing, "MOST_ROUNDS", 50)

    async def crawling(target: str, seconds: float, body: bytes | None) -> bytes:
        answer = await a.fetch(target, seconds, body)
        question = msgspec.msgpack.decode(body, type=RangesQuestion) if body else None
        if question is None or not question.compare:
            return answer
        told = msgspec.msgpack.decode(answer, type=RangesTold)
        begin = question.compare[0][0]
        return encode(msgspec.structs.replace(told, done=0, upto=begin, records=[], repositories=[], gone=b""))

    link.follower._fetch = crawling
    with pytest.raises(BadContent, match="without coming to an end"):
        await link.follower.once()
    assert a.rounds() <= 52


async def test_records_under_other_places_or_marks_are_corrected_once_the_truth_is_told(make: Make) -> None:
    a, b, link = await followed(make)
    await a.saw("t3", "another")

    def forge(told: RootsTold) -> RootsTold:
        records = [msgspec.structs.replace(one, name="t39") for one in told.records if isinstance(one, TagChange)]
        return msgspec.structs.replace(told, records=records)

    honest = link.follower._fetch
    lying(link, a, forge, about="/sync/v1/changes")
    await link.follower.once()  # the ranges put it right
    link.follower._fetch = honest
    assert await link.shadow() == await fingerprint(a)
    await link.once()
    assert await points(b, "t3") == digest("another")


async def test_nodes_with_a_key_each_are_told_of_and_not_read_over_and_over(make: Make) -> None:
    a, twin, b = await make("a"), await make("twin"), await make("b")
    await a.saw("latest", "one")
    await twin.saw("latest", "one")
    link = Link(b, Balanced([a, twin]), name="a")
    with pytest.raises(BadContent, match="one fleet secret"):
        await link.follower.once()
    assert len(a.asked) + len(twin.asked) < 30


async def test_a_new_key_is_awaited_until_it_is_everywhere(make: Make) -> None:
    a, _, link = await followed(make)
    await a.catalog.write(lambda transaction: rekeyed(transaction, b"another mesh key"))
    a.asked.clear()
    with pytest.raises(Unavailable, match="new key"):
        await link.follower.once()
    await a.catalog.rekey(b"another mesh key")
    await link.follower.once()
    assert await link.shadow() == await fingerprint(a)
    assert sum(size for _, _, size in a.asked) < 5000  # what differs alone was told


def rekeyed(transaction: Any, mesh: bytes) -> None:
    from proxy.store.roots import rekey

    rekey(transaction, mesh)


async def test_what_waits_goes_on_waiting_when_its_region_has_another_key(make: Make) -> None:
    a, b = await make("a"), await make("b")
    link = Link(b, a)
    await link.once()
    await a.catalog.prove(ALPINE, digest("signature"), Proof.FETCHED)
    await a.saw("latest", "one")
    await a.catalog.write(
        lambda transaction: transaction.connection.execute("UPDATE membership SET root = '' WHERE root IS NULL")
    )
    await a.catalog.rekey(b"a second mesh key")
    await a.catalog.write(lambda transaction: transaction.renew())
    await link.follower.once()
    before = {one.record.digest: one.since for one in await link.waiting()}
    assert before.keys() == {digest("signature"), digest("one")}
    await a.catalog.rekey(b"another mesh key")
    await link.follower.once()
    assert {one.record.digest: one.since for one in await link.waiting()} == before
    assert await link.shadow() == await fingerprint(a)


async def test_scopes_by_many_names_are_not_all_kept(make: Make) -> None:
    a = await make("a")
    await a.saw("latest", "one")
    for number in range(70):
        for scope in (Scope.of(["*", f"x{number}"]), Scope.of([f"docker.io/x{number}"])):
            await a.fetch(RootsQuestion({a.catalog.epoch: 0}, scope).target, 5.0, None)
    assert len(a.changes._scopes._kept) <= 64


@pytest.mark.parametrize(
    ("error", "followed_as", "fetched_as"),
    [
        (Refused("no grant"), "refused", "refused"),
        (Unauthorized("no"), "refused", "refused"),
        (Denied("no"), "refused", "refused"),
        (Unavailable("no answer"), "unreachable", "unreachable"),
        (TimeoutError(), "unreachable", "unreachable"),
        (SameCatalog("itself"), "same-catalog", "corrupt"),
        (BadContent("junk"), "unreadable", "corrupt"),
        (StoreError("full"), "store", "store"),
        (ValueError("?"), "other", "other"),
    ],
)
def test_failures_are_counted_by_what_helps_against_them(error: Exception, followed_as: str, fetched_as: str) -> None:
    assert (following.reason_of(error), fetching.reason_of(error)) == (followed_as, fetched_as)


async def test_a_region_that_fails_is_asked_again_and_its_reason_counted(make: Make) -> None:
    a, b = await make("a"), await make("b")
    link = Link(b, a)
    failed = asyncio.Event()
    refused = True

    async def fetch(target: str, seconds: float, body: bytes | None) -> bytes:
        if refused:
            failed.set()
            raise Refused("region a knows no grant for us")
        return await a.fetch(target, seconds, body)

    link.follower._fetch = fetch
    task = asyncio.create_task(link.follower.run())
    async with asyncio.timeout(60):
        await failed.wait()
        refused = False
        await a.saw("latest", "one")
        await link.news.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [one.reason for one in link.events if isinstance(one, PeerFailed)] == ["refused"]
    assert isinstance(Refused("x"), RegistryError)
