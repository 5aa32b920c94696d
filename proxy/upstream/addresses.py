"""Which addresses an upstream may send us to (P39): its own kind and the public Internet, nothing else.

The resolver refuses when a connection is made, so no name can be checked as one address and used as another.
"""

from __future__ import annotations

import ipaddress
import socket
from enum import Enum

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Kind(Enum):
    """What kind of place an address is in."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    PRIVATE = "private"
    SPECIAL = "special"  # unspecified, multicast


class AddressRefused(OSError):
    """A name or literal that leads where this upstream must not send us."""


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return `host` as an address, None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def kind_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Kind:
    """Return the kind of `address`, seeing through IPv4 inside IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_unspecified or address.is_multicast:
        return Kind.SPECIAL
    if address.is_loopback:
        return Kind.LOOPBACK
    if address.is_link_local:
        return Kind.LINK_LOCAL
    return Kind.PUBLIC if address.is_global else Kind.PRIVATE


class Territory:
    """Where one configured host may lead us. It learns the host's own kind of address as it is resolved.

    `trusted` are names that the configuration gives: the host itself, its proxy, `redirect_hosts`.
    """

    def __init__(self, host: str, trusted: frozenset[str]) -> None:
        self.host = host.lower()
        self.trusted = frozenset(name.lower() for name in trusted) | {self.host}
        address = literal(host)
        self._home = {Kind.PUBLIC} | ({kind_of(address)} if address else set())

    def learn(self, address: str) -> None:
        """Take note that the host itself is at `address`."""
        parsed = literal(address)
        if parsed is not None:
            self._home.add(kind_of(parsed))

    def permits(self, address: str) -> bool:
        """Tell whether a host that nobody configured may be at `address`."""
        parsed = literal(address)
        return parsed is not None and kind_of(parsed) in self._home

    def permits_host(self, host: str) -> bool:
        """Tell whether a connection to `host` may be begun; for a name the resolver has the last word."""
        return host.lower() in self.trusted or literal(host) is None or self.permits(host)


class GuardedResolver(AbstractResolver):
    """Resolves in a thread, and leaves out what the territory does not permit."""

    def __init__(self, territory: Territory, inner: AbstractResolver | None = None) -> None:
        self._territory = territory
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the permitted addresses of `host`. Raises AddressRefused where there are only others."""
        found = await self._inner.resolve(host, port, family)
        if host.lower() == self._territory.host:
            for entry in found:
                self._territory.learn(entry["host"])
        if host.lower() in self._territory.trusted:
            return found
        permitted = [entry for entry in found if self._territory.permits(entry["host"])]
        if not permitted:
            raise AddressRefused(
                f"{host} has only loopback, private or link-local addresses; "
                f"if {self._territory.host} may send us there, add it to redirect_hosts"
            )
        return permitted

    async def close(self) -> None:
        await self._inner.close()
