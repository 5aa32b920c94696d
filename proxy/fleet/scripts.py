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


PROBE = Script("probe", "return redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)")
"""Asks for all that the fleet needs of Redis: it runs scripts and takes writes."""
