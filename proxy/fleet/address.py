"""Where Redis is, read from a URL: one server, one that Sentinels know, or a cluster. Pure.

    redis://[[user]:password@]host[:6379][/database]
    redis+sentinel://[[user]:password@]host[:26379],host…/name[/database]
    redis+cluster://[[user]:password@]host[:6379],host…

With `rediss` in place of `redis` the connections are TLS. User and password are percent-encoded and are the data
servers', not the Sentinels'. How it is connected to lies in `dialing`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

Kind = Literal["single", "sentinel", "cluster"]

_SUFFIXES: tuple[tuple[str, Kind], ...] = (("", "single"), ("+sentinel", "sentinel"), ("+cluster", "cluster"))
SCHEMES = {f"redis{s}{suffix}": (kind, bool(s)) for suffix, kind in _SUFFIXES for s in ("", "s")}
_PORTS: dict[Kind, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,252})))(?::(\d{1,5}))?")
_HOSTS_MOST = 64
_ENCODED = "; a '/', '?', '#', '@' or ':' in the user or the password is written %2F, %3F, %23, %40, %3A"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is. `hosts` are (name, port): of the Sentinels where `kind` says so, whose `service` is meant."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    service: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False

    def __str__(self) -> str:
        """Return what people may read: no user, no password."""
        hosts = ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} of the Sentinels {hosts}" if self.kind == "sentinel" else hosts


def parse(url: str) -> RedisAddress:
    """Return what `url` says. Raises ValueError with the reason, which never shows a part of the URL."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"it does not begin with {', '.join(f'{one}://' for one in SCHEMES)}")
    kind, tls = SCHEMES[scheme]
    if "?" in rest or "#" in rest:
        raise ValueError(f"it has a query or a fragment, and none is known{_ENCODED}")
    authority, _, path = rest.partition("/")
    user_info, at, hosts = authority.rpartition("@")
    if "@" in user_info:
        raise ValueError(f"it has more than one '@'{_ENCODED}")
    username, _, password = user_info.partition(":")
    service, database = _path(kind, path)
    return RedisAddress(
        kind=kind,
        hosts=_hosts(kind, hosts),
        database=database,
        service=service,
        username=unquote(username) or None,
        password=(unquote(password) or None) if at else None,
        tls=tls,
    )


def _hosts(kind: Kind, written: str) -> tuple[tuple[str, int], ...]:
    parts = written.split(",")
    if kind == "single" and len(parts) > 1:
        raise ValueError("it names several hosts: write redis+sentinel:// or redis+cluster://")
    if len(parts) > _HOSTS_MOST:
        raise ValueError(f"it names more than {_HOSTS_MOST} hosts")
    hosts = []
    for part in parts:
        match = _HOST.fullmatch(part.strip())
        if match is None or not 0 < int(match[3] or _PORTS[kind]) < 65536:
            raise ValueError(f"a host in it is not HOST or HOST:PORT{_ENCODED}")
        hosts.append((match[1] or match[2], int(match[3] or _PORTS[kind])))
    return tuple(hosts)


def _path(kind: Kind, path: str) -> tuple[str, int]:
    """Return the Sentinels' name of the service, and the database."""
    parts = [part for part in path.split("/") if part]
    service = ""
    if kind == "sentinel":
        if not parts:
            raise ValueError("it lacks the name under which the Sentinels know Redis: redis+sentinel://host,host/NAME")
        service = unquote(parts.pop(0))
    if not parts:
        return service, 0
    if kind == "cluster":
        raise ValueError("it has a path, and a cluster has one database alone")
    if len(parts) > 1 or not (parts[0].isascii() and parts[0].isdecimal() and len(parts[0]) < 6):
        raise ValueError(f"what follows the hosts is not the number of a database{_ENCODED}")
    return service, int(parts[0])
