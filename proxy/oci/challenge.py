"""`WWW-Authenticate` as values (RFC 9110 §11.6.1, P32). What is done about a challenge is the upstream client's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)")
# A bare value may hold what RFC 9110 wants quoted, such as the slashes of a realm: registries do that.
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",=][^\s",]*))(?=[\s,]|$)', re.DOTALL)
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9\-._~+/]+=*\s*(?=,|$)")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: the scheme and the names of its parameters in lower case, values as they came."""

    scheme: str
    params: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all `WWW-Authenticate` lines in their order (P32).

    Never raises: what follows the first broken piece of a line is dropped with it. Of a parameter given
    twice the first counts. The single blob of some schemes (`Negotiate TlRM=`) is skipped.
    """
    return [challenge for header in headers for challenge in _parse_line(header)]


def _parse_line(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while scheme := _SCHEME.match(header, at):
        at = scheme.end()
        params: dict[str, str] = {}
        while pair := _PARAMETER.match(header, at):
            name, quoted, bare = pair.groups()
            params.setdefault(name.lower(), bare if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted))
            at = pair.end()
        if not params and (blob := _TOKEN68.match(header, at)) and "," not in header[scheme.end() : blob.start()]:
            at = blob.end()
        found.append(Challenge(scheme[1].lower(), params))
    return found


def scope_for(repository_path: str) -> str:
    """Return the token scope that reading `repository_path` needs (P33)."""
    return f"repository:{repository_path}:pull"
