"""A silent main host and its alternates: who is asked when, and whose answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from proxy.cache import hedging
from proxy.cache.sources import Upstreams
from proxy.memory import MemorySource
from proxy.oci.errors import ManifestUnknown, Transient, Unavailable
from proxy.oci.names import Repository
from proxy.source import Source

ALPINE = Repository("docker.io", "library/alpine")


@dataclass
class Stream:
    """Something open."""

    closed: bool = False

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Panel:
    """Sources by name, whose answers come when they are let."""

    answers: dict[str, asyncio.Future[object]] = field(default_factory=dict)
    asked: dict[str, asyncio.Event] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)

    def upstreams(self, *names: str) -> Upstreams:
        sources = []
        for name in names:
            self.answers[name] = asyncio.get_running_loop().create_future()
            self.asked[name] = asyncio.Event()
            sources.append(MemorySource(name))
        return Upstreams({"docker.io": sources}, offline=False, reachable=lambda _: True)

    @property
    def question(self) -> Callable[[Source], Awaitable[object]]:
        async def ask(source: Source) -> object:
            self.asked[source.name].set()
            try:
                return await asyncio.shield(self.answers[source.name])
            except asyncio.CancelledError:
                self.given_up.append(source.name)
                raise

        return ask


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "HEDGE_SECONDS", 0.01)


@pytest.mark.usefixtures("soon")
async def test_alternate_is_asked_beside_a_silent_main_host_and_its_answer_is_taken() -> None:  # P30
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    asking = asyncio.create_task(upstreams.ask(ALPINE, panel.question, ManifestUnknown))
    await panel.asked["alternate"].wait()
    assert not panel.given_up
    panel.answers["alternate"].set_result("here")
    assert await asking == "here"
    assert panel.given_up == ["main"]


@pytest.mark.usefixtures("soon")
async def test_main_host_that_answers_after_all_is_taken_while_the_alternate_is_silent() -> None:
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    asking = asyncio.create_task(upstreams.ask(ALPINE, panel.question, ManifestUnknown))
    await panel.asked["alternate"].wait()
    panel.answers["main"].set_result("late")
    assert await asking == "late"
    assert panel.given_up == ["alternate"]


async def test_prompt_main_host_is_asked_alone() -> None:
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    panel.answers["main"].set_result("here")
    assert await upstreams.ask(ALPINE, panel.question, ManifestUnknown) == "here"
    assert not panel.asked["alternate"].is_set()


async def test_host_that_fails_passes_the_question_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "HEDGE_SECONDS", 60)
    panel = Panel()
    upstreams = panel.upstreams("main", "second", "third")
    for name in ("main", "second"):
        panel.answers[name].set_exception(Unavailable(f"{name} is down"))
    panel.answers["third"].set_result("here")
    async with asyncio.timeout(30):
        assert await upstreams.ask(ALPINE, panel.question, ManifestUnknown) == "here"


@pytest.mark.usefixtures("soon")
async def test_no_of_the_main_host_ends_the_question_though_an_alternate_is_being_asked() -> None:  # P44
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    asking = asyncio.create_task(upstreams.ask(ALPINE, panel.question, ManifestUnknown, elsewhere=(Transient,)))
    await panel.asked["alternate"].wait()
    panel.answers["main"].set_exception(ManifestUnknown("gone"))
    with pytest.raises(ManifestUnknown, match="gone"):
        await asking
    assert panel.given_up == ["alternate"]


@pytest.mark.usefixtures("soon")
async def test_what_the_loser_has_opened_is_closed() -> None:
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    asking = asyncio.create_task(upstreams.ask(ALPINE, panel.question, ManifestUnknown))
    await panel.asked["alternate"].wait()
    winner, loser = Stream(), Stream()
    panel.answers["main"].set_result(winner)
    panel.answers["alternate"].set_result(loser)
    assert await asking is winner
    assert (winner.closed, loser.closed) == (False, True)


@pytest.mark.usefixtures("soon")
async def test_caller_that_leaves_ends_every_question() -> None:
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    asking = asyncio.create_task(upstreams.ask(ALPINE, panel.question, ManifestUnknown))
    await panel.asked["alternate"].wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert sorted(panel.given_up) == ["alternate", "main"]


async def test_main_host_that_failed_a_moment_ago_is_asked_after_its_alternates() -> None:  # P26
    panel = Panel()
    upstreams = panel.upstreams("main", "alternate")
    panel.answers["main"].set_exception(Unavailable("down"))
    panel.answers["alternate"].set_result("here")
    assert await upstreams.ask(ALPINE, panel.question, ManifestUnknown) == "here"
    panel.asked["main"].clear()
    assert await upstreams.ask(ALPINE, panel.question, ManifestUnknown) == "here"
    assert not panel.asked["main"].is_set()
