"""The mode `upstream`: how long proofs and refusals are believed, and what is done while nobody can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from proxy.access import upstream
from proxy.access.admission import Visitor
from proxy.access.upstream import UpstreamAccess
from proxy.cache.once import Background
from proxy.memory import MemorySource
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import Denied, ManifestUnknown, RegistryError, TooManyRequests, Unauthorized, Unavailable
from proxy.oci.names import Reference, Repository, Tag
from proxy.oci.requests import ManifestRequest
from proxy.upstream.callers import acting
from tests.access.support import basic

HUB = "docker.io"
SECRET = ManifestRequest(Repository(HUB, "team/secret"), Tag("1"), None)
ANN = Visitor(basic("ann", "x"), "192.0.2.1")
NOBODY = Visitor(None, "192.0.2.1")


@dataclass
class Upstream(MemorySource):
    """Answers by user name (empty: without a login): with an error, or with a descriptor."""

    answers: dict[str, RegistryError | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hang: asyncio.Event | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def resolve(self, repository: Repository, reference: Reference) -> Descriptor:
        identity = acting()
        assert identity is not None
        user = identity.credential.username if identity.credential is not None else ""
        self.asked.append(user)
        self.began.set()
        if self.hang is not None:
            await self.hang.wait()
        error = self.answers.get(user, Denied("no"))
        if error is not None:
            raise error
        return Descriptor("text/plain", Digest.of(b""), 0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def background() -> AsyncIterator[Background]:
    async with Background() as running:
        yield running


@pytest.fixture
def source() -> Upstream:
    return Upstream(answers={"ann": None})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(source: Upstream, clock: Clock, background: Background) -> UpstreamAccess:
    return UpstreamAccess({HUB: source}, background, offline=False, clock=clock)


async def test_a_proof_is_believed_for_a_minute(access: UpstreamAccess, source: Upstream, clock: Clock) -> None:
    identity = await access.admit(ANN, SECRET)
    assert identity is not None
    for _ in range(5):
        clock.now += 11
        assert await access.admit(ANN, SECRET) == identity
    assert source.asked == ["", "ann"]
    clock.now += 6
    await access.admit(ANN, SECRET)
    assert source.asked == ["", "ann", "", "ann"]


async def test_many_who_ask_at_once_are_one_question(access: UpstreamAccess, source: Upstream) -> None:
    await asyncio.gather(*(access.admit(ANN, SECRET) for _ in range(20)))
    assert source.asked == ["", "ann"]


async def test_while_the_upstream_fails_a_proof_lasts_an_hour(
    access: UpstreamAccess, source: Upstream, clock: Clock
) -> None:
    await access.admit(ANN, SECRET)
    source.answers = dict.fromkeys(("", "ann", "amy"), Unavailable("down"))
    clock.now += 3500
    assert await access.admit(ANN, SECRET) is not None
    with pytest.raises(Unavailable):
        await access.admit(Visitor(basic("amy", "y"), "192.0.2.1"), SECRET)
    clock.now += 101
    with pytest.raises(Unavailable):
        await access.admit(ANN, SECRET)


async def test_after_a_404_nothing_is_served_until_the_upstream_has_given_it_again(
    access: UpstreamAccess, source: Upstream, clock: Clock
) -> None:  # P44
    other = ManifestRequest(SECRET.repository, Tag("2"), None)
    await access.admit(ANN, SECRET)
    source.answers["ann"] = ManifestUnknown("it is gone")
    clock.now += 61
    with pytest.raises(ManifestUnknown):
        await access.admit(ANN, SECRET)
    source.answers["ann"] = Unavailable("down")
    with pytest.raises(Unavailable):  # for some registries 404 is how they refuse
        await access.admit(ANN, other)
    source.answers["ann"] = None
    await access.admit(ANN, other)
    source.answers["ann"] = Unavailable("down")
    await access.admit(ANN, other)
    with pytest.raises(Unavailable):
        await access.admit(ANN, SECRET)
    source.answers["ann"] = None
    await access.admit(ANN, SECRET)
    source.answers["ann"] = Unavailable("down")
    await access.admit(ANN, SECRET)


async def test_many_refusals_of_strangers_end_no_proof(
    access: UpstreamAccess, source: Upstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.access.verdicts.REMEMBERED", 4)
    await access.admit(ANN, SECRET)
    for number in range(6):
        with pytest.raises(Unauthorized):
            await access.admit(NOBODY, ManifestRequest(Repository(HUB, f"guess/{number}"), Tag("1"), None))
    source.answers = dict.fromkeys(("", "ann"), Unavailable("down"))
    clock.now += 3500
    assert await access.admit(ANN, SECRET) is not None


async def test_an_upstream_at_its_limit_is_told_as_it_is(access: UpstreamAccess, source: Upstream) -> None:
    source.answers = {"": Denied("no"), "ann": TooManyRequests("slow", retry_after=7)}
    with pytest.raises(TooManyRequests) as told:
        await access.admit(ANN, SECRET)
    assert told.value.retry_after == 7  # P16


async def test_a_refusal_lasts_ten_seconds_and_ends_a_proof(
    access: UpstreamAccess, source: Upstream, clock: Clock
) -> None:
    await access.admit(ANN, SECRET)
    source.answers = {"ann": Denied("no")}
    clock.now += 61
    for _ in range(3):
        with pytest.raises(Denied):
            await access.admit(ANN, SECRET)
    assert source.asked == ["", "ann"] * 2
    source.answers = {"ann": Unavailable("down")}
    clock.now += 11
    with pytest.raises(Unavailable):
        await access.admit(ANN, SECRET)  # the hour's grace was for a proof, not for a refusal
    source.answers = {"ann": None}
    assert await access.admit(ANN, SECRET) is not None


async def test_what_does_not_exist_proves_nothing_and_is_asked_for_each_time(
    access: UpstreamAccess, source: Upstream
) -> None:
    source.answers = {"": ManifestUnknown("none"), "ann": ManifestUnknown("none")}
    for visitor in (ANN, NOBODY):
        with pytest.raises(ManifestUnknown):
            await access.admit(visitor, SECRET)
    source.answers = {"ann": None}
    assert await access.admit(ANN, SECRET) is not None


async def test_a_proof_for_one_repository_is_none_for_another(access: UpstreamAccess, source: Upstream) -> None:
    await access.admit(ANN, SECRET)
    source.answers = {}
    with pytest.raises(Denied):
        await access.admit(ANN, ManifestRequest(Repository(HUB, "team/other"), Tag("1"), None))


async def test_an_upstream_that_hangs_is_waited_for_only_so_long(
    access: UpstreamAccess, source: Upstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await access.admit(ANN, SECRET)
    monkeypatch.setattr(upstream, "PROOF_SECONDS", 0.02)
    source.hang = asyncio.Event()
    clock.now += 61
    assert await access.admit(ANN, SECRET) is not None
    with pytest.raises(Unavailable, match="does not say"):
        await access.admit(NOBODY, SECRET)
    source.hang.set()


async def test_public_content_is_admitted_without_an_identity(access: UpstreamAccess, source: Upstream) -> None:
    source.answers = {"": None}
    assert await access.admit(ANN, SECRET) is None
    assert await access.admit(NOBODY, SECRET) is None
    assert source.asked == [""]


async def test_offline_nobody_can_be_asked(source: Upstream, background: Background) -> None:
    access = UpstreamAccess({HUB: source}, background, offline=True)
    for visitor in (ANN, NOBODY):
        with pytest.raises(Unavailable, match="offline"):
            await access.admit(visitor, SECRET)
    assert not source.asked


async def test_nobody_without_a_right_is_challenged(access: UpstreamAccess) -> None:
    with pytest.raises(Unauthorized):
        await access.admit(NOBODY, SECRET)


async def test_a_proof_that_a_reload_ends_is_an_answer_and_no_cut_connection(source: Upstream) -> None:
    source.hang = asyncio.Event()
    async with Background() as background:
        access = UpstreamAccess({HUB: source}, background, offline=False)
        asking = asyncio.create_task(access.admit(NOBODY, SECRET))
        await asyncio.wait_for(source.began.wait(), 30)
    with pytest.raises(Unavailable, match="ask again"):
        await asking
