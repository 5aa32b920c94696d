"""Leases in Redis: which node downloads what, who has it, and what the last who asked was told.

A lease is a key's value for LEASE_SECONDS: a nonce drawn at each acquisition, and its holder's URL. Its holder renews
it every BEAT_SECONDS. All changes compare the value, so that a holder that stood still finds out at its next beat, and
harms nobody. Where Redis forgot it, the first beat or acquisition after that decides.

    entrepot:1:<region>:{<key>}:lease     "<nonce> <node>", expires
    entrepot:1:<region>:{<key>}:holders   a sorted set: nodes that have it, by when they said so
    entrepot:1:<region>:{<key>}:said      "<ms> <data>": what was heard, and when

A lease says who should do the work, never what is true: two that work at once do harm to nothing but the upstream's
traffic. Who leads, follows and takes over lies in `fleet`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from proxy.fleet.link import Link, LinkDown
from proxy.fleet.scripts import NOW, Script

BEAT_SECONDS = 1.0
LEASE_SECONDS = 4.0
HINT_SECONDS = 6 * 3600.0
HOLDERS_MOST = 8
_HOLDERS_KEPT = 16
SAID_MOST = 4096

_HOLDERS = """
local function holders(key, node, now, hint_ms, most)
  local others = {}
  for _, holder in ipairs(redis.call('ZREVRANGEBYSCORE', key, '+inf', now - hint_ms, 'LIMIT', 0, most + 1)) do
    if holder ~= node and #others < most then others[#others + 1] = holder end
  end
  return others
end
"""
# A time to live beyond LEASE_SECONDS, or none, is left by a clock that was set back: nobody may wait for that.
_ACQUIRE = Script(
    "acquire",
    NOW
    + _HOLDERS
    + """
local mine, node, lease_ms, hint_ms, instead_of = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local held = redis.call('GET', KEYS[1])
if held then
  local left = redis.call('PTTL', KEYS[1])
  if left < 0 or left > lease_ms then redis.call('PEXPIRE', KEYS[1], lease_ms) end
  if held == instead_of or string.match(held, '^%S+ (.*)$') == node then held = false end
end
if not held then redis.call('SET', KEYS[1], mine .. ' ' .. node, 'PX', lease_ms) end
return {held, redis.call('GET', KEYS[3]), now, holders(KEYS[2], node, now, hint_ms, tonumber(ARGV[6]))}
""",
)
_BEAT = Script(
    "beat",
    """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""",
)
_HOLD = """
local function hold(key, node, now, hint_ms, kept)
  redis.call('ZADD', key, now, node)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - hint_ms)
  redis.call('ZREMRANGEBYRANK', key, 0, -kept - 1)
  redis.call('PEXPIRE', key, hint_ms)
end
"""
_RELEASE = Script(
    "release",
    NOW
    + _HOLD
    + """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if ARGV[3] == '1' then hold(KEYS[2], ARGV[2], now, tonumber(ARGV[4]), tonumber(ARGV[5])) end
local said_ms = tonumber(ARGV[6])
if said_ms > 0 then redis.call('SET', KEYS[3], now .. ' ' .. ARGV[7], 'PX', said_ms) end
return 1
""",
)
_LOOK = Script("look", "return redis.call('GET', KEYS[1])")
_WHO_HOLDS = Script(
    "holders", NOW + _HOLDERS + "return holders(KEYS[1], ARGV[1], now, tonumber(ARGV[2]), tonumber(ARGV[3]))"
)
_HOLD_ONE = Script("hold", NOW + _HOLD + "hold(KEYS[1], ARGV[1], now, tonumber(ARGV[2]), tonumber(ARGV[3])) return 1")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it is held: `node` is its holder's URL, `nonce` belongs to one acquisition alone."""

    key: str
    nonce: str
    node: str


@dataclass(frozen=True, slots=True)
class Said:
    """What a node heard `age` seconds ago, by Redis's clock."""

    data: bytes
    age: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What an acquisition found: the lease is ours or theirs; which other nodes have the content, newest first."""

    ours: Lease | None
    theirs: Lease | None
    holders: tuple[str, ...]
    said: Said | None


class Leases:
    """The leases of one region, as `node` (its URL) sees them. Everything raises LinkDown."""

    def __init__(self, link: Link, node: str) -> None:
        self._link = link
        self._node = node

    async def acquire(self, key: str, *, instead_of: Lease | None = None) -> Standing:
        """Take the lease of `key` where nobody has it, or learn who does.

        One that this node itself has is taken over, as whoever in it held it is gone: a node asks once at a time.
        instead_of: so is this very lease, whose holder was found dead.
        """
        ours = Lease(key, secrets.token_hex(16), self._node)
        before = "" if instead_of is None else _value(instead_of)
        held, said, now, holders = await self._link.run(
            _ACQUIRE,
            self._keys(key),
            (ours.nonce, self._node, _ms(LEASE_SECONDS), _ms(HINT_SECONDS), before, HOLDERS_MOST),
        )
        theirs = _lease(key, held)
        return Standing(
            ours=None if theirs else ours,
            theirs=theirs,
            holders=_nodes(holders),
            said=_said(said, int(now)),
        )

    async def beat(self, lease: Lease) -> bool:
        """Renew `lease`, or put it back where Redis forgot it; False: another node has taken it."""
        return bool(await self._link.run(_BEAT, self._keys(lease.key)[:1], (_value(lease), _ms(LEASE_SECONDS))))

    async def release(self, lease: Lease, *, holds: bool, said: tuple[bytes, float] | None = None) -> None:
        """Drop `lease` where it is still ours.

        holds: this node has the content now. said: what it heard, and for how many seconds others may believe it; it
        is left out where it is larger than SAID_MOST.
        """
        data, seconds = said if said is not None and len(said[0]) <= SAID_MOST else (b"", 0.0)
        await self._link.run(
            _RELEASE,
            self._keys(lease.key),
            (_value(lease), self._node, int(holds), _ms(HINT_SECONDS), _HOLDERS_KEPT, _ms(seconds), data),
        )

    async def look(self, key: str) -> Lease | None:
        """Return who has the lease of `key` now."""
        return _lease(key, await self._link.run(_LOOK, self._keys(key)[:1]))

    async def holders(self, key: str) -> tuple[str, ...]:
        """Return which other nodes have the content of `key`, newest first, HOLDERS_MOST at most."""
        args = (self._node, _ms(HINT_SECONDS), HOLDERS_MOST)
        return _nodes(await self._link.run(_WHO_HOLDS, self._keys(key)[1:2], args))

    async def hold(self, key: str) -> None:
        """Tell that this node has the content of `key`, for HINT_SECONDS."""
        await self._link.run(_HOLD_ONE, self._keys(key)[1:2], (self._node, _ms(HINT_SECONDS), _HOLDERS_KEPT))

    def _keys(self, key: str) -> tuple[str, str, str]:
        stem = f"{self._link.prefix}{{{key}}}"
        return f"{stem}:lease", f"{stem}:holders", f"{stem}:said"


@asynccontextmanager
async def sole(leases: Leases, key: str) -> AsyncIterator[asyncio.Event | None]:
    """Hold the lease of work that one node does, for as long as the context lasts; None: another has it, or Redis not.

    It is renewed meanwhile. The event is set once another has it all the same, as this one stood still, or Redis forgot
    it; until then both may do the work.
    """
    try:
        lease = (await leases.acquire(key)).ours
    except LinkDown:
        lease = None
    if lease is None:
        yield None
        return
    lost = asyncio.Event()
    beating = asyncio.create_task(_beat(leases, lease, lost), name=f"lead {key}")
    try:
        yield lost
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        with suppress(LinkDown):
            await leases.release(lease, holds=False)


async def _beat(leases: Leases, lease: Lease, lost: asyncio.Event) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        with suppress(LinkDown):
            if not await leases.beat(lease):
                lost.set()
                return


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _value(lease: Lease) -> str:
    return f"{lease.nonce} {lease.node}"


def _nodes(values: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(value.decode(errors="replace") for value in values)


def _lease(key: str, value: Any) -> Lease | None:
    if not isinstance(value, bytes):
        return None
    nonce, _, node = value.decode(errors="replace").partition(" ")
    return Lease(key, nonce, node)


def _said(value: Any, now: int) -> Said | None:
    if not isinstance(value, bytes):
        return None
    heard, _, data = value.partition(b" ")
    return Said(data, max(0, now - int(heard)) / 1000) if heard.isdigit() else None
