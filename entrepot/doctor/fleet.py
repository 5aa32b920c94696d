"""A look at what the nodes of a fleet share: their Redis, the other nodes, and this one as they reach it.

Nothing is changed but for a key of some bytes that Redis forgets within seconds. What is asked is bounded: each step by
`STEP_SECONDS`, the nodes by `MOST_NODES`.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from redis.exceptions import RedisError

from entrepot.config import Config
from entrepot.doctor.findings import look
from entrepot.secrets import fleet_secret
from entrepot.tls import neighbour_tls
from metrics.events import ignore
from proxy.fleet.address import RedisAddress, parse
from proxy.fleet.dialing import Client, dial
from proxy.fleet.link import prefix_of
from proxy.fleet.neighbours import Neighbours, Refused, open_neighbours
from proxy.fleet.nodes import NodeInfo, who_is_there
from proxy.fleet.problems import problem_of
from proxy.fleet.protocol import PING, PROTOCOL, Neighbourhood, origin
from proxy.fleet.scripts import NOW
from proxy.oci.errors import BadContent, RegistryError

STEP_SECONDS = 2.0
MOST_NODES = 16
_TRIES = 5
_CLOSING_SECONDS = 0.5

Failed = Literal["", "outside", "protocol", "refused", "stranger", "silent"]


@dataclass(frozen=True, slots=True)
class RedisSeen:
    """What was seen of Redis; `failure`: why it cannot be used, in a sentence.

    `seconds` that a call takes, the median of some. `skew`: how far ahead its clock is, in seconds. `used` of `most`
    bytes of memory (0: no limit), with the `policy` of when they are full. What it would not tell is empty.
    """

    address: str
    failure: str = ""
    version: str = ""
    seconds: float = 0.0
    skew: float = 0.0
    used: int = 0
    most: int = 0
    policy: str = ""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What was seen of a node. `skew`: how far ahead its clock is, in seconds.

    failed: outside (`neighbours` does not admit it) | protocol (it speaks another one, and was not asked) | refused (it
    does not believe us) | stranger (no node of this fleet answers there) | silent.
    """

    url: str
    version: str = ""
    protocol: int = PROTOCOL
    failed: Failed = ""
    failure: str = ""
    skew: float | None = None


@dataclass(frozen=True, slots=True)
class FleetSeen:
    """Redis, this node at its own URL, the others. `failure`: why no node could be asked."""

    redis: RedisSeen
    own: NodeSeen
    others: tuple[NodeSeen, ...] = ()
    failure: str = ""


async def look_at_fleet(config: Config, redis: str) -> FleetSeen:
    """Look at the Redis at the URL `redis`, the nodes that it knows, and this node, as `config` describes it."""
    url = origin(config.fleet_address)
    seen, nodes = await _look_at_redis(parse(redis), config.region)
    others = [node for node in nodes if node.url != url][:MOST_NODES]
    try:
        secret = await look(lambda: fleet_secret(config), STEP_SECONDS)
        async with _tls(config) as tls:
            near = Neighbourhood.parse(config.neighbours, url)
            async with (
                open_neighbours(url, secret, near, tls, ignore) as neighbours,
                open_neighbours(url, secret, Neighbourhood.parse((), url), tls, ignore) as myself,
            ):
                own, *rest = await asyncio.gather(
                    _ask(myself, NodeSeen(url)), *(_look_at_node(neighbours, near, node) for node in others)
                )
    except (OSError, ValueError) as error:
        return FleetSeen(seen, NodeSeen(url), failure=str(error) or type(error).__name__)
    return FleetSeen(seen, own, tuple(rest))


async def _look_at_redis(address: RedisAddress, region: str) -> tuple[RedisSeen, list[NodeInfo]]:
    client = dial(address)
    seen = RedisSeen(str(address))
    try:
        async with asyncio.timeout(STEP_SECONDS):
            return await _measure(client, seen, region), await who_is_there(client, region)
    except (TimeoutError, RedisError, OSError) as error:
        return replace(seen, failure=problem_of(error, address)), []
    finally:
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await client.aclose()
        except (TimeoutError, RedisError, OSError):
            pass  # it is not used any more


async def _measure(client: Client, seen: RedisSeen, region: str) -> RedisSeen:
    key = f"{prefix_of(region)}probe"
    await client.probe(key)
    took: list[float] = []
    for _ in range(_TRIES):
        began = time.monotonic()
        now = await client.execute(("EVAL", f"{NOW} return now", 1, key))
        took.append(time.monotonic() - began)
    told = await _told(client)
    return replace(
        seen,
        version=str(told.get("redis_version", "")),
        seconds=statistics.median(took),
        skew=int(now) / 1000 - time.time(),
        used=int(told.get("used_memory", 0)),
        most=int(told.get("maxmemory", 0)),
        policy=str(told.get("maxmemory_policy", "")),
    )


async def _told(client: Client) -> Mapping[str, Any]:
    """Return what INFO tells; nothing where this user may not ask, or each node of a cluster tells for itself."""
    try:
        told = await client.execute(("INFO",))
    except RedisError:
        return {}
    return told if isinstance(told, Mapping) and "redis_version" in told else {}


@asynccontextmanager
async def _tls(config: Config) -> AsyncIterator[ssl.SSLContext | None]:
    if config.tls is None:
        yield None
        return
    async with neighbour_tls(config.tls) as context:
        yield context


async def _look_at_node(neighbours: Neighbours, near: Neighbourhood, node: NodeInfo) -> NodeSeen:
    seen = NodeSeen(node.url, node.version, node.protocol)
    if not near.admits(node.url):
        return replace(seen, failed="outside")
    if node.protocol != PROTOCOL:
        return replace(seen, failed="protocol")
    return await _ask(neighbours, seen)


async def _ask(neighbours: Neighbours, seen: NodeSeen) -> NodeSeen:
    try:
        async with neighbours.request(seen.url, "GET", PING, timeout=STEP_SECONDS) as answer:
            return replace(seen, skew=_skew(answer.headers.get("Date", "")))
    except Refused as error:
        return replace(seen, failed="refused", failure=error.message)
    except BadContent as error:
        return replace(seen, failed="stranger", failure=error.message)
    except RegistryError as error:
        return replace(seen, failed="silent", failure=error.message)


def _skew(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
