"""What the nodes of a fleet tell one another of upstream hosts: who fails, how long to hold back, what quota is left.

    entrepot:1:<region>:hosts     a hash: "<host> <topic>" → "<ms> <process> <JSON>"; topics: health, quota, a hold each

Every process that asks upstreams takes part. It tells only what it found out by questions of its own, so that nothing
goes in circles, and the newest says it. No credential and nothing of a caller's is in it: what a host refused to
somebody is about that one alone. A 429 is believed for HELD_MOST seconds, whatever it asked for: nodes may have
addresses, or for a while credentials, with a quota of their own, and whoever asks after that is told for itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from metrics.events import UpstreamQuota
from proxy.fleet.link import Link, LinkDown
from proxy.fleet.scripts import NOW, Script
from proxy.oci.errors import Unavailable
from proxy.upstream.health import Health
from proxy.upstream.holds import Holds
from proxy.upstream.quota import QuotaWatch

BEAT_SECONDS = 1.0
KEPT_SECONDS = 3600.0
MESSAGE_MOST = 300
HELD_MOST = 60.0

_EXCHANGE = Script(
    "hosts",
    NOW
    + """
local process, kept_ms, others = ARGV[1], tonumber(ARGV[2]), {}
for i = 3, #ARGV, 3 do
  local ms = now - tonumber(ARGV[i + 1])
  local before = redis.call('HGET', KEYS[1], ARGV[i])
  local before_ms = before and tonumber(string.match(before, '^%d+'))
  if not before_ms or before_ms <= ms or before_ms > now then
    redis.call('HSET', KEYS[1], ARGV[i], ms .. ' ' .. process .. ' ' .. ARGV[i + 2])
  end
end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ms, from, said = string.match(all[i + 1], '^(%d+) (%S+) (.*)$')
  local age = ms and now - tonumber(ms)
  if not age or age > kept_ms or age < -kept_ms then
    redis.call('HDEL', KEYS[1], all[i])
  elseif from ~= process then
    others[#others + 1] = {all[i], math.max(age, 0), said}
  end
end
redis.call('PEXPIRE', KEYS[1], kept_ms)
return others
""",
)


class Host(Protocol):
    """What is remembered of an upstream host."""

    health: Health
    holds: Holds
    quota: QuotaWatch

    def learned(self) -> None:
        """Its health has learned something."""
        ...


class Failing(msgspec.Struct, frozen=True, tag="failing"):
    """It fails, and whoever says so leaves it alone for `quiet` seconds from then."""

    message: str
    quiet: float


class Answering(msgspec.Struct, frozen=True, tag="answering"):
    """It answers again."""


class Held(msgspec.Struct, frozen=True, tag="held"):
    """Questions of a kind are held back for `left` seconds: everybody's, or those with the mirror's own credential."""

    kind: str
    everybody: bool
    left: float
    message: str


class Quota(msgspec.Struct, frozen=True, tag="quota"):
    """What the host said is allowed and left, in a window of so many seconds."""

    upstream: str
    limit: int
    remaining: int
    window: int


Finding = Failing | Answering | Held | Quota


class News(msgspec.Struct, frozen=True):
    """A finding to be told under `field`, from `age` seconds ago; `stamp` tells it from the one told before."""

    field: str
    stamp: float
    age: float
    finding: Finding


class Hosts:
    """Shares what `hosts` gives by name with the other processes of the fleet."""

    def __init__(self, link: Link, hosts: Callable[[], Mapping[str, Host]]) -> None:
        self._link = link
        self._hosts = hosts
        self._process = secrets.token_hex(8)
        self._told: dict[str, float] = {}
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Tell and learn once a second. Runs until it is cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> bool:
        """Do so once; False: Redis did not answer, and what was to be told is told the next time."""
        hosts = self._hosts()
        failing = {name for name, host in hosts.items() if host.health.failing}
        news = [one for name, host in hosts.items() for one in self._news(name, host) if self._is_new(one)]
        args: list[str | bytes | int] = [self._process, round(KEPT_SECONDS * 1000)]
        for one in news:
            args += [one.field, max(0, round(one.age * 1000)), msgspec.json.encode(one.finding)]
        try:
            others = await self._link.run(_EXCHANGE, [f"{self._link.prefix}hosts"], args)
        except LinkDown:
            return False
        self._failing = failing
        self._told |= {one.field: one.stamp for one in news}
        for field, age, said in others:
            host = hosts.get(field.decode(errors="replace").partition(" ")[0])
            if host is not None:
                _apply(host, age / 1000, said)
        return True

    def _is_new(self, one: News) -> bool:
        return self._told.get(one.field) != one.stamp

    def _news(self, name: str, host: Host) -> Iterator[News]:
        health, now = host.health, host.health.clock()
        if health.opened_at is not None:
            if not health.learned and health.last_error is not None:
                age = now - health.opened_at
                finding = Failing(health.last_error.message[:MESSAGE_MOST], age + health.quiet_left)
                yield News(f"{name} health", health.opened_at, age, finding)
        elif name in self._failing and health.answered_at is not None:
            yield News(f"{name} health", health.answered_at, now - health.answered_at, Answering())
        for hold in host.holds.heard():
            whose = "everybody" if hold.everybody else "own"
            held = Held(hold.kind, hold.everybody, hold.until - now, hold.message[:MESSAGE_MOST])
            yield News(f"{name} hold:{hold.kind}:{whose}", hold.until, 0.0, held)
        if host.quota.heard is not None:
            told, at = host.quota.heard
            finding_of_quota = Quota(told.upstream, told.limit, told.remaining, told.window)
            yield News(f"{name} quota", at, now - at, finding_of_quota)


def _apply(host: Host, age: float, said: bytes) -> None:
    """Let `host` learn what another process found out `age` seconds ago."""
    try:
        finding = msgspec.json.decode(said, type=Finding)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    match finding:
        case Failing(message, quiet):
            host.health.learn_failing(Unavailable(message), age, quiet - age)
            host.learned()
        case Answering():
            host.health.learn_answering(age)
        case Held(kind, everybody, left, message):
            seconds = left if everybody else min(left, HELD_MOST)
            host.holds.learn(kind, seconds - age, message, everybody=everybody)
        case Quota(upstream, limit, remaining, window):
            host.quota.learn(UpstreamQuota(upstream, limit, remaining, window), age)
