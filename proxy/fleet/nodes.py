"""Which nodes are in the fleet: each says so in Redis once a second, and learns of the others.

    entrepot:nodes:<region>     a hash: URL → "<ms> <NodeInfo as JSON>"

This key carries no version: it is where nodes of different versions meet, so what is in it stays as it is, and fields
are only ever added. Times are Redis's. While Redis is down the last list stays in use: whoever is asked and does not
answer is passed by.

Two nodes of one URL (each advertises the load balancer, say) would take each other's leases for their own: whoever
finds again and again under its URL what it has not written says so in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from proxy.cache.progress import Signal
from proxy.fleet.dialing import Client
from proxy.fleet.link import Link, LinkDown
from proxy.fleet.scripts import NOW, Script

BEAT_SECONDS = 1.0
SEEN_SECONDS = 5.0
KEPT_SECONDS = 60.0
NODES_MOST = 1000
STRANGE_MOST = 3

_BEAT = Script(
    "nodes",
    NOW
    + """
local seen_ms, kept_ms, most, seen = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local before = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2]) end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ms, said = string.match(all[i + 1], '^(%d+) (.*)$')
  local age = ms and now - tonumber(ms)
  if not age or age > kept_ms or age < -seen_ms then
    redis.call('HDEL', KEYS[1], all[i])
  elseif age <= seen_ms and all[i] ~= ARGV[1] and #seen < most then
    seen[#seen + 1] = said
  end
end
redis.call('PEXPIRE', KEYS[1], kept_ms)
return {seen, before, now}
""",
)
_BOUNDS = (round(SEEN_SECONDS * 1000), round(KEPT_SECONDS * 1000), NODES_MOST)
_LEAVE = Script("leave", "return redis.call('HDEL', KEYS[1], ARGV[1])")
_log = logging.getLogger(__name__)


class NodeInfo(msgspec.Struct, frozen=True):
    """A node as it tells of itself: `protocol` is what it speaks with other nodes.

    state: serving | draining (it ends what it has begun).
    """

    url: str
    protocol: int
    version: str
    state: str = "serving"


class Nodes:
    """The other nodes of the fleet, as last seen; `changed` wakes who waits for news.

    tells: says that this node is there; where it has several processes, one does.
    others: those that speak our protocol. incompatible: those that speak another one, and are not worked with.
    """

    def __init__(self, link: Link, me: NodeInfo, *, tells: bool = True) -> None:
        self.me = me
        self._tells = tells
        self.others: tuple[NodeInfo, ...] = ()
        self.incompatible: tuple[NodeInfo, ...] = ()
        self.changed = Signal()
        self._link = link
        self._key = _key(link.region)
        self._warned: set[tuple[str, int]] = set()
        self._left = False
        self._wrote: bytes | None = None
        self._strange = 0

    def urls(self) -> list[str]:
        """Return where the others are."""
        return [node.url for node in self.others]

    async def run(self) -> None:
        """Tell the others of this node and learn of them, once a second. Runs until it is cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> bool:
        """Do so once; False: Redis did not answer, all stays as it was."""
        if self._left:
            return False
        told = msgspec.json.encode(self.me) if self._tells else b""
        try:
            seen, before, now = await self._link.run(_BEAT, [self._key], (self.me.url, told, *_BOUNDS))
        except LinkDown:
            self._wrote = None  # it may have been carried out all the same
            return False
        if self._tells:
            self._compare(before)
            self._wrote = b"%d %b" % (now, told)
        self._learn(_readable(seen))
        return True

    async def drain(self) -> None:
        """Tell the others that this node serves what it has begun and nothing new."""
        self.me = msgspec.structs.replace(self.me, state="draining")
        await self.beat()

    async def leave(self) -> None:
        """Take this node off the list: it ends. Where Redis does not answer, the others notice within SEEN_SECONDS."""
        self._left = True
        try:
            await self._link.run(_LEAVE, [self._key], [self.me.url])
        except LinkDown:
            return

    def _compare(self, before: bytes | None) -> None:
        """Look whether what is found under our URL is what we wrote there last."""
        if before is None or self._wrote is None:
            return
        self._strange = 0 if before == self._wrote else self._strange + 1
        if self._strange == STRANGE_MOST:
            _log.error(
                "another node says that it is at %s, too: give each node an `advertise` of its own, by which the others"
                " reach that very node; until then they spoil each other's downloads",
                self.me.url,
            )

    def _learn(self, nodes: list[NodeInfo]) -> None:
        others = tuple(node for node in nodes if node.protocol == self.me.protocol)
        incompatible = tuple(node for node in nodes if node.protocol != self.me.protocol)
        for node in incompatible:
            self._warn(node)
        if (others, incompatible) != (self.others, self.incompatible):
            self.others, self.incompatible = others, incompatible
            self.changed.wake()

    def _warn(self, node: NodeInfo) -> None:
        if node.protocol > self.me.protocol and (node.url, node.protocol) not in self._warned:
            if len(self._warned) >= NODES_MOST:
                self._warned.clear()
            self._warned.add((node.url, node.protocol))
            _log.warning(
                "node %s speaks fleet protocol %d, this one %d: upgrade this node; until then they do not help each "
                "other",
                node.url,
                node.protocol,
                self.me.protocol,
            )


async def who_is_there(client: Client, region: str) -> list[NodeInfo]:
    """Return all nodes of a region's fleet, whatever they speak, without being one. Raises as `client` does."""
    seen, _, _ = await client.execute(("EVAL", _BEAT.text, 1, _key(region), "", "", *_BOUNDS))
    return _readable(seen)


def _key(region: str) -> str:
    return f"entrepot:nodes:{region}"


def _readable(seen: Sequence[bytes]) -> list[NodeInfo]:
    return sorted(filter(None, map(_read, seen)), key=lambda node: node.url)


def _read(said: bytes) -> NodeInfo | None:
    try:
        return msgspec.json.decode(said, type=NodeInfo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
