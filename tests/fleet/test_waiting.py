"""How long a neighbour is waited for while nothing comes, and how a download of its ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest
from aiohttp import web

from metrics.events import NeighbourRequest
from proxy.fleet import neighbour, neighbours
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from tests.fleet.nodes import ALPINE, Asker, Growing, Node, read

SMALL = bytes(range(256)) * 256


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(neighbours, "ALIVE_SECONDS", 0.2)


def asking(*answers: bool) -> tuple[Callable[[], Awaitable[bool]], list[bool]]:
    """Return a `still` that gives these answers, the last one for ever, and what it has given."""
    given: list[bool] = []

    async def still() -> bool:
        given.append(answers[min(len(given), len(answers) - 1)])
        return given[-1]

    return still, given


async def test_a_silent_leader_that_is_worth_waiting_for_is_waited_for(
    pair: tuple[Node, Asker], impatient: None
) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(1000)
    times, thrice = 0, asyncio.Event()

    async def still() -> bool:
        nonlocal times
        times += 1
        if times == 3:
            thrice.set()
        return True

    stream = await asker.at(node, still=still).open_blob(ALPINE, node.cache.fill(growing))
    reading = asyncio.create_task(read(stream))
    async with asyncio.timeout(30):
        await thrice.wait()
    assert not reading.done()
    growing.arrive()
    assert await reading == SMALL


async def test_a_silent_leader_that_leads_no_more_is_given_up(pair: tuple[Node, Asker], impatient: None) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(1000)
    still, given = asking(True, False)
    stream = await asker.at(node, still=still).open_blob(ALPINE, node.cache.fill(growing))
    with pytest.raises(Unavailable, match=r"gives nothing for .* at byte 1000"):
        await read(stream)
    assert given == [True, False]
    async with asyncio.timeout(30):
        await growing.closed.wait()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_node_that_is_stopped_is_given_up_whatever_redis_says(
    pair: tuple[Node, Asker], impatient: None, begun: bool
) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    digest = node.cache.fill(growing)
    still, given = asking(True)
    real, stopped = node.answer, asyncio.Event()

    async def nothing(request: web.BaseRequest) -> web.StreamResponse:
        await stopped.wait()
        return await real(request)

    began = monotonic()
    if begun:
        growing.arrive(1000)
        stream = await asker.at(node, still=still).open_blob(ALPINE, digest)
        node.answer = nothing
        with pytest.raises(Unavailable, match="gives nothing"):
            await read(stream)
    else:
        node.answer = nothing
        with pytest.raises(Unavailable, match="does not answer"):
            await asker.at(node, still=still).open_blob(ALPINE, digest)
        growing.close()
    assert monotonic() - began < 6
    assert given
    stopped.set()


async def test_an_answer_is_not_waited_for_longer_than_it_is_worth(pair: tuple[Node, Asker], impatient: None) -> None:
    node, asker = pair
    node.cache.gate = asyncio.Event()
    still, given = asking(True, False)
    with pytest.raises(Unavailable, match="not to be waited for"):
        await asker.at(node, still=still).manifest(ALPINE, Digest.of(b"x"))
    assert given == [True, False]
    assert "abandoned" in {event.outcome for event in asker.events if isinstance(event, NeighbourRequest)}


async def test_silence_ends_even_where_all_seems_well(
    pair: tuple[Node, Asker], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour, "LONGEST_SILENCE", 0.3)
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(1000)
    stream = await asker.at(node, still=asking(True)[0]).open_blob(ALPINE, node.cache.fill(growing))
    with pytest.raises(Unavailable, match="gives nothing"):
        await read(stream)


async def test_a_download_that_fails_at_the_leader_breaks_off(pair: tuple[Node, Asker]) -> None:  # P28
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(1000)
    stream = await asker.at(node).open_blob(ALPINE, node.cache.fill(growing))
    growing.fail(Unavailable("the upstream is gone"))
    with pytest.raises(Unavailable, match="breaks off"):
        await read(stream)


async def test_an_asker_that_leaves_frees_what_it_read(pair: tuple[Node, Asker]) -> None:
    node, asker = pair
    growing = Growing(SMALL)
    growing.arrive(1000)
    stream = await asker.at(node).open_blob(ALPINE, node.cache.fill(growing))
    await stream.__anext__()
    await stream.aclose()
    async with asyncio.timeout(30):
        await growing.closed.wait()
    with pytest.raises(Unavailable, match="was closed"):
        await stream.__anext__()
