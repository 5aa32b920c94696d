"""Lua that Redis runs, as values. Each module of the fleet keeps its own scripts; here is what they have in common.

All times in them are Redis's own, so that the clocks of nodes do not matter. Every script may run twice, and late: a
call that was given up is carried out all the same when a Redis that stood still goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
"""Sets `now`, in milliseconds of unix time by Redis's clock."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, by the name that metrics have for it."""

    name: str
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


PROBE = Script(
    "probe",
    """
local key = KEYS[1]
redis.call('SET', key, ARGV[1], 'PX', 10000)
redis.call('TIME')
redis.call('DEL', key)
redis.call('ZADD', key, 1, 'x')
redis.call('PEXPIRE', key, 10000)
redis.call('ZREVRANGEBYSCORE', key, '+inf', 0)
redis.call('ZREMRANGEBYRANK', key, 0, -9)
redis.call('ZREMRANGEBYSCORE', key, '-inf', 1)
redis.call('HSET', key, 'x', 'x')
redis.call('PEXPIRE', key, 10000)
redis.call('HGET', key, 'x')
redis.call('HGETALL', key)
redis.call('HDEL', key, 'x')
redis.call('SET', key, ARGV[1], 'PX', 10000)
redis.call('PTTL', key)
return redis.call('GET', key)
""",
)
"""Asks for all that the fleet needs of Redis: it runs scripts, takes writes, and allows every command of the others.

It writes first of all: Redis that is out of memory lets a script go on that has deleted something.
"""
