"""Whether and how a redirect is followed, and whether a token realm may be asked (P36, P39). Pure.

What cannot be decided from the URL alone, where a name leads, is decided by `addresses` when the connection is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from proxy.oci.errors import Unavailable
from proxy.upstream.addresses import Territory

REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a redirect leads. `home`: still at the registry, so Authorization goes along and its 401 is ours to answer.

    `presigned`: another host with a query, most likely a signature for one GET: never sent a HEAD, never kept.
    """

    url: URL
    home: bool
    presigned: bool


def same_origin(one: URL, other: URL) -> bool:
    """Tell whether scheme, host and port are equal (RFC 6454)."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def next_hop(registry: URL, current: URL, location: str, territory: Territory) -> Hop:
    """Return where `location`, given by `current`, leads.

    Raises:
        Unavailable: it leads nowhere, away from https, or to a place this registry must not send us (P39).
    """
    url = _target(current, location)
    where = f"{registry.host} redirects to {_shown(url)}"
    _check(url, registry, territory, where)
    if current.scheme == "https" and url.scheme != "https":
        raise Unavailable(f"{where}: leaving https is refused")
    home = same_origin(registry, url)
    return Hop(url, home, not home and bool(url.raw_query_string))


def check_realm(registry: URL, realm: str, territory: Territory) -> URL:
    """Return the token realm that `registry` names in a challenge.

    Raises:
        Unavailable: not an absolute URL, not https although the registry is, or a place it must not send us (P39).
    """
    url = _target(None, realm)
    _check(url, registry, territory, f"{registry.host} names the token realm {_shown(url)}")
    return url


def _target(current: URL | None, text: str) -> URL:
    # A presigned URL must stay as it was written; only what is no URL at all is quoted.
    as_written = text.isascii() and text.isprintable() and " " not in text
    try:
        url = URL(text, encoded=as_written)
        url = current.join(url) if current is not None else url
        # Force what yarl parses lazily, so that a bad port is an error here.
        if url.port is None and url.scheme in ("http", "https"):
            raise ValueError("no port")
    except ValueError:
        raise Unavailable(f"a redirect or token realm is not a URL: {text[:80]!r}") from None
    return url.with_fragment(None) if url.raw_fragment else url


def _check(url: URL, registry: URL, territory: Territory, where: str) -> None:
    if url.scheme not in ("http", "https") or not url.host:
        raise Unavailable(f"{where}: only http and https are followed")
    if url.raw_user is not None or url.raw_password is not None:
        raise Unavailable(f"{where}: a URL with a user in it is refused")
    if url.scheme == "http" and registry.scheme != "http":
        raise Unavailable(f"{where}: leaving https is refused")
    if not territory.permits_host(url.host):
        raise Unavailable(
            f"{where}: a loopback, private or link-local address; if that is meant, add {url.host} to redirect_hosts"
        )


def _shown(url: URL) -> str:
    """The URL for a person: no query, no user."""
    return f"{url.scheme}://{url.host or ''}{':' + str(url.explicit_port) if url.explicit_port else ''}{url.path[:80]}"
