"""The rights in Redis that docs/fleet.md asks for are enough, and the doctor is content with them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from entrepot.doctor.fleet import look_at_fleet
from metrics.events import Event, RedisHealth, RedisRefused, ignore
from proxy.fleet.address import parse
from proxy.fleet.answers import Answers
from proxy.fleet.hosts import Hosts
from proxy.fleet.leases import Leases
from proxy.fleet.link import Link, LinkDown, open_link, prefix_of
from proxy.fleet.nodes import NodeInfo, Nodes
from proxy.fleet.problems import problem_of
from proxy.fleet.protocol import PROTOCOL
from proxy.fleet.scripts import PROBE
from proxy.oci.names import Repository, Tag
from tests.doctor.test_sharing import config_at
from tests.support.redis import RedisServer

pytestmark = pytest.mark.needs("redis-server")

ROOT = Path(__file__).parents[2]
ALPINE = Repository("docker.io", "library/alpine")
ME = "http://127.0.0.1:9"


def documented() -> list[str]:
    (line,) = (line for line in (ROOT / "docs/fleet.md").read_text().splitlines() if line.startswith("ACL SETUSER"))
    return line.replace("PASSWORD", "hidden").split()


async def everything(link: Link) -> None:
    """Call every script there is. Raises LinkDown."""
    leases = Leases(link, ME)
    lease = (await leases.acquire("key")).ours
    assert lease is not None
    assert await leases.beat(lease)
    await leases.release(lease, holds=True, said=(b"said", 3.0))
    assert await leases.look("key") is None
    assert (await leases.acquire("key")).said is not None
    assert await Leases(link, "http://127.0.0.2:9").holders("key") == (ME,)
    await leases.hold("key")
    nodes = Nodes(link, NodeInfo(ME, PROTOCOL, "1"))
    assert await nodes.beat()
    await nodes.leave()
    answers = Answers(link)
    telling = asyncio.create_task(answers.run())
    answers.note_missing("manifest", ALPINE, Tag("no"), "there is none", 30)
    async with asyncio.timeout(30):
        while await answers.missing("manifest", ALPINE, Tag("no")) is None:  # noqa: ASYNC110 - only Redis tells
            await asyncio.sleep(0.01)
    telling.cancel()
    await Hosts(link, dict).beat()
    assert link.problem is None


async def test_the_documented_rights_are_enough(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 5.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 5.0)
    url = f"redis://entrepot:hidden@{redis_server.address}/0"
    with contextlib.closing(redis_server.client()) as client:
        client.execute_command(*documented())
        try:
            async with open_link(parse(url), ignore, prefix=prefix_of("eu")) as link:
                await everything(link)
            seen = await look_at_fleet(config_at(ME, url), url)
            refused = {entry["object"] for entry in client.acl_log()}
        finally:
            client.acl_deluser("entrepot")
    assert (seen.redis.failure, seen.redis.version) == ("", "")
    # From Redis 7.2 on the client tells its name when it connects, and passes over a no.
    assert refused <= {"info", "client|setinfo"}, "the page lacks a right"


async def test_a_right_that_lacks_is_told_once_and_for_as_long_as_it_lacks(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.fleet.link.PROBE_EVERY", 0.1)
    events: list[Event] = []
    with contextlib.closing(redis_server.client()) as client:
        client.execute_command(*documented(), "-zadd")
        try:
            url = f"redis://entrepot:hidden@{redis_server.address}/0"
            async with open_link(parse(url), events.append, prefix=prefix_of("eu")) as link, asyncio.timeout(30):
                leases = Leases(link, ME)
                while sum(isinstance(event, RedisRefused) for event in events) < 12:
                    with contextlib.suppress(LinkDown):
                        await leases.hold("key")
                    await asyncio.sleep(0.05)
                assert "docs/fleet.md" in (link.problem or "")
        finally:
            client.acl_deluser("entrepot")
    assert [event.up for event in events if isinstance(event, RedisHealth)] == [False]


def test_the_probe_of_the_link_asks_for_every_right_that_the_scripts_need() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "proxy/fleet").glob("*.py"))
    assert set(re.findall(r"redis\.call\('(\w+)'", scripts)) == set(re.findall(r"redis\.call\('(\w+)'", PROBE.text))


def test_what_the_scripts_call_is_allowed_and_nothing_else_is() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "proxy/fleet").glob("*.py"))
    called = {f"+{command.lower()}" for command in re.findall(r"redis\.call\('(\w+)'", scripts)}
    assert called | {"+ping", "+eval", "+evalsha"} == {word for word in documented() if word.startswith("+")}


def test_other_keys_and_commands_are_out_of_reach(redis_server: RedisServer) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.execute_command(*documented())
        try:
            for command in (["GET", "other"], ["KEYS", "*"], ["FLUSHALL"], ["PUBLISH", "entrepot:x", "y"]):
                assert client.execute_command("ACL", "DRYRUN", "entrepot", *command) != "OK"
            assert client.execute_command("ACL", "DRYRUN", "entrepot", "GET", "entrepot:x") == "OK"
        finally:
            client.acl_deluser("entrepot")


@pytest.mark.parametrize(
    "said",
    [
        "The user executing the script can't run this command or subcommand script: 1f, on @user_script:6.",
        "ACL failure in script: User entrepot has no permissions to run the 'zadd' command script: 1f.",
    ],
)
def test_whatever_the_words_of_a_version_a_right_that_lacks_has_its_remedy(said: str) -> None:
    told = problem_of(ResponseError(said), parse("redis://entrepot:hidden@r.example/0"))
    assert "docs/fleet.md" in told
    assert "hidden" not in told
