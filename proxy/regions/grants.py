"""Which regions may read from this one: who shows a token or certificate of a grant, and what it covers.

Tokens are compared by hash, all of all grants in constant time. Files are read again when they change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from proxy.access.admission import bearer
from proxy.access.files import WatchedFile
from proxy.access.verdicts import Attempts
from proxy.oci.errors import Unauthorized
from proxy.regions.credentials import LinkFileError, hash_token, hash_tokens
from proxy.regions.protocol import CHALLENGE
from proxy.regions.scope import Scope

_REFUSAL = "only regions that have a grant are answered here: show one of its tokens, or its certificate"
log = logging.getLogger(__name__)

AddressOf = Callable[[web.BaseRequest], str]


def _remote(request: web.BaseRequest) -> str:
    return request.remote or ""


@dataclass(frozen=True, slots=True)
class Grant:
    """The region `name` may read what `scope` admits."""

    name: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """A grant, and who has it: whoever shows a token of the file, or a certificate of that name."""

    grant: Grant
    token_file: Path | None = None
    certificate: str | None = None


class Grants:
    """Make it with `open`. State: the files, which tokens were admitted, and wrong ones counted by address.

    `address_of` tells whose address a request has behind a proxy.
    """

    def __init__(
        self, held: Sequence[tuple[GrantTerms, WatchedFile[Sequence[bytes]] | None]], address_of: AddressOf
    ) -> None:
        self._held = held
        self._address_of = address_of
        self._attempts = Attempts()
        self._admitted: frozenset[bytes] = frozenset()
        self._ambiguous: set[bytes] = set()

    @classmethod
    async def open(cls, terms: Sequence[GrantTerms], address_of: AddressOf = _remote) -> Self:
        """Read the token files. Raises AccessFileError; LinkFileError where two grants have the same token."""
        held = []
        seen: dict[bytes, GrantTerms] = {}
        for one in terms:
            file = None if one.token_file is None else await WatchedFile.open(one.token_file, hash_tokens)
            for token in () if file is None else await file.current():
                other = seen.setdefault(token, one)
                if other is not one:
                    raise LinkFileError(
                        f"{other.token_file} of grant {other.grant.name} and {one.token_file} of grant"
                        f" {one.grant.name} hold the same token: give each region one of its own"
                    )
            held.append((one, file))
        return cls(held, address_of)

    async def judge(self, request: web.BaseRequest) -> Grant:
        """Return the grant of whoever asks. Raises Unauthorized; TooManyRequests after many wrong tokens."""
        given = bearer(request.headers.get("Authorization"))
        address = self._address_of(request)
        found = None if given is None else await self._of_token(given, address)
        if found is None:
            found = self._of_certificate(request)
        if found is not None:
            return found
        if given is not None:
            self._attempts.wrong(address)
        raise Unauthorized(_REFUSAL, challenge=CHALLENGE)

    async def _of_token(self, given: str, address: str) -> Grant | None:
        hashed = hash_token(given)
        if hashed not in self._admitted:
            self._attempts.check(address)
        matches = []
        for terms, file in self._held:
            tokens = () if file is None else await file.current()
            if sum([compare_digest(hashed, token) for token in tokens]):
                matches.append(terms.grant)
        if len(matches) == 1:
            self._admitted |= {hashed}
            return matches[0]
        self._admitted -= {hashed}
        if matches and hashed not in self._ambiguous:
            self._ambiguous.add(hashed)
            names = ", ".join(grant.name for grant in matches)
            log.error("a token is in the files of several grants and opens none", extra={"grants": names})
        return None

    def _of_certificate(self, request: web.BaseRequest) -> Grant | None:
        transport = request.transport
        tls = None if transport is None else transport.get_extra_info("ssl_object")
        names = frozenset[str]() if tls is None else names_in(tls.getpeercert() or {})
        return next((terms.grant for terms, _ in self._held if terms.certificate in names), None)


def names_in(certificate: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a verified certificate: the common name of its subject, its alternative DNS names."""
    common = {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
    return frozenset(common | {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"})
