"""Clients of redis-py for one server, Sentinels and a cluster, behind one small face: what `link` asks of any of them.

They retry nothing: who waits how long, and whether Redis is asked at all, is decided in `link`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from proxy.fleet.address import RedisAddress
from proxy.fleet.scripts import PROBE

CONNECTIONS = 32
_SPARE = 8
_STEP_SECONDS = 0.25

Command = Sequence[str | bytes | int | float]


class Client(Protocol):
    """A client of Redis. All may raise what redis-py raises, and OSError."""

    async def execute(self, command: Command) -> Any:
        """Return the answer to one command, in bytes."""
        ...

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to many, in their order; an error stands in the place of its answer."""
        ...

    async def probe(self, key: str) -> None:
        """Find out whether all that is needed works."""
        ...

    async def forget(self) -> None:
        """Drop what was learned while all was well: idle connections, who is the primary."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def dial(address: RedisAddress) -> Client:
    """Return a client, which connects when it is first asked. Call it in a running loop."""
    return _Cluster(address) if address.kind == "cluster" else _Single(address)


def _settings(address: RedisAddress) -> dict[str, Any]:
    return {
        "username": address.username,
        "password": address.password,
        "ssl": address.tls,
        "protocol": 2,
        # With a time limit of its own for each command redis-py loses cancellations (Python 3.11's `wait_for`).
        "socket_timeout": None,
        "socket_connect_timeout": _STEP_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": CONNECTIONS + _SPARE,
    }


class _Single:
    """One server, or the one that Sentinels name."""

    def __init__(self, address: RedisAddress) -> None:
        settings = _settings(address) | {"db": address.database}
        if address.kind == "sentinel":
            own = settings | {"username": None, "password": None, "db": 0, "socket_timeout": _STEP_SECONDS}
            sentinel = cast(Any, Sentinel)(list(address.hosts), sentinel_kwargs=own)
            self._sentinels: list[Any] = sentinel.sentinels
            self._redis: Any = sentinel.master_for(address.service, **settings)
        else:
            host, port = address.hosts[0]
            self._sentinels = []
            self._redis = cast(Any, Redis)(host=host, port=port, **settings)

    async def execute(self, command: Command) -> Any:
        return await self._redis.execute_command(*command)

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return cast("list[Any]", await pipeline.execute(raise_on_error=False))

    async def probe(self, key: str) -> None:
        await self._redis.execute_command("EVAL", PROBE.text, 1, key, "")

    async def forget(self) -> None:
        await self._redis.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        for client in (self._redis, *self._sentinels):
            await client.aclose()
            await client.connection_pool.disconnect()


class _Cluster:
    """A cluster: each key's own node. `forget` lets another node be asked first: one may hang."""

    def __init__(self, address: RedisAddress) -> None:
        self._settings = _settings(address)
        self._nodes = [cast(Any, ClusterNode)(host, port) for host, port in address.hosts]
        self._redis = self._client()

    async def execute(self, command: Command) -> Any:
        return await self._redis.execute_command(*command)

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._redis.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        return cast("list[Any]", await pipeline.execute(raise_on_error=False))

    async def probe(self, key: str) -> None:
        """Asks every primary: with one gone, some keys are out of reach, and nobody could tell which beforehand."""
        await self._redis.initialize()
        await self._redis.ping(target_nodes=RedisCluster.PRIMARIES)
        await self._redis.execute_command("EVAL", PROBE.text, 1, key, "")

    async def forget(self) -> None:
        before, self._nodes = self._redis, [*self._nodes[1:], self._nodes[0]]
        self._redis = self._client()
        await before.aclose()

    async def aclose(self) -> None:
        await self._redis.aclose()

    def _client(self) -> Any:
        return cast(Any, RedisCluster)(startup_nodes=self._nodes, require_full_coverage=False, **self._settings)
