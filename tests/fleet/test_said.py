"""What the upstream said of a tag, as one node leaves it in Redis for the others, and what of that is believed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from metrics.events import ignore
from proxy.cache.near import TagSaid
from proxy.cache.once import Background
from proxy.fleet.address import parse
from proxy.fleet.fleet import SharedFleet
from proxy.fleet.leases import Leases
from proxy.fleet.link import open_link, prefix_of
from proxy.fleet.protocol import encode_tag
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Tag
from tests.fleet.nodes import ALPINE, SECRET, TYPE, an_asker, sharing
from tests.support.redis import RedisServer

pytestmark = pytest.mark.needs("redis-server")

TAG = Tag("3")
FOUND = Descriptor(TYPE, Digest.of(b"alpine"), 6)
KEY = f"entrepot:1:eu:{{tag:{ALPINE}:%s}}:said"


@asynccontextmanager
async def fleet_at(url: str, own_url: str, secret: bytes = SECRET) -> AsyncIterator[SharedFleet]:
    async with (
        open_link(parse(url), ignore, prefix=prefix_of("eu")) as link,
        an_asker(own_url=own_url, secret=secret) as asker,
        Background() as background,
    ):
        yield sharing(link, Leases(link, own_url), asker, background)
        leaving = [task for task in asyncio.all_tasks() if task.get_name().startswith("leave ")]
        await asyncio.gather(*leaving)


async def heard_by(fleet: SharedFleet, tag: Tag = TAG) -> TagSaid | None:
    async with fleet.tag_flight(ALPINE, tag, 60) as flight:
        return flight.said


async def tell(url: str) -> None:
    """Have a node hear of the tag, and leave the answer."""
    async with fleet_at(url, "http://127.0.0.1:1") as fleet, fleet.tag_flight(ALPINE, TAG, 60) as flight:
        assert flight.said is None
        flight.heard(FOUND, 60)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is believed is looked at, not how soon it comes."""
    monkeypatch.setattr("proxy.fleet.link.CALL_SECONDS", 10.0)
    monkeypatch.setattr("proxy.fleet.link.SLOW_SECONDS", 10.0)


async def test_what_one_node_heard_of_a_tag_the_next_one_need_not_ask(redis_url: str) -> None:
    await tell(redis_url)
    async with fleet_at(redis_url, "http://127.0.0.1:2") as fleet:
        said = await heard_by(fleet)
    assert said is not None
    assert said.found == FOUND


async def test_a_node_with_another_secret_is_not_believed(redis_url: str) -> None:
    await tell(redis_url)
    async with fleet_at(redis_url, "http://127.0.0.1:2", b"a secret of some other fleet") as fleet:
        assert await heard_by(fleet) is None


@pytest.mark.parametrize("signature", ["", "0" * 64 + " "])
async def test_whoever_writes_to_redis_cannot_say_what_a_repository_contains(
    redis_server: RedisServer, redis_url: str, signature: str
) -> None:  # P43
    forged = signature.encode() + encode_tag(TagSaid(FOUND, "", 0.0))
    with contextlib.closing(redis_server.client()) as client:
        seconds, microseconds = client.time()
        client.set(KEY % TAG, b"%d " % (seconds * 1000 + microseconds // 1000) + forged)
    async with fleet_at(redis_url, "http://127.0.0.1:2") as fleet:
        assert await heard_by(fleet) is None


async def test_what_was_said_of_one_tag_is_not_believed_of_another(redis_server: RedisServer, redis_url: str) -> None:
    await tell(redis_url)
    with contextlib.closing(redis_server.client()) as client:
        assert client.copy(KEY % TAG, KEY % "other")
    async with fleet_at(redis_url, "http://127.0.0.1:2") as fleet:
        assert await heard_by(fleet, Tag("other")) is None
        assert await heard_by(fleet) is not None
