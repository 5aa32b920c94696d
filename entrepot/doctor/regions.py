"""A look at other regions: each peer as the mirror would ask it, and the files with tokens. No content is asked for."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from entrepot.config import Config, PeerConfig
from metrics.events import ignore
from proxy.oci.errors import BadContent, RegistryError
from proxy.regions.budget import Budget
from proxy.regions.credentials import LinkFileError, LinkFiles, hash_token, read_tokens
from proxy.regions.peer import PeerClient, PeerTerms, Refused, open_peer
from proxy.regions.protocol import PING
from proxy.regions.scope import Scope
from sync.regional_records import RootsQuestion, RootsTold, decode_roots

STEP_SECONDS = 3.0
_MOST_WORDS = 16 << 10

Failed = Literal["", "files", "refused", "silent", "unreadable"]


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """What was seen of a peer.

    failed: files (what proves who asks cannot be used) | refused (it does not know us, or TLS failed) | silent |
    unreadable (no region that speaks as this one answers). region: what it calls itself. skew: how far ahead its clock
    is, in seconds. records: how many it tells us of what we ask for.
    """

    name: str
    url: str
    failed: Failed = ""
    failure: str = ""
    region: str = ""
    skew: float | None = None
    records: int | None = None


@dataclass(frozen=True, slots=True)
class TokenFileSeen:
    """A file with tokens: `of` the peer or grant, its permissions, its tokens as hashes.

    failure: why its content is no use; empty too where it cannot be opened, which is told elsewhere.
    """

    of: str
    path: Path
    mode: int = 0
    failure: str = ""
    tokens: tuple[bytes, ...] = field(default=(), repr=False)


async def look_at_peer(peer: PeerConfig, region: str) -> PeerSeen:
    """Ask a peer, in the name of `region`, who it is and how many records it has for us; `STEP_SECONDS` a step."""
    seen = PeerSeen(peer.name, peer.url)
    files = LinkFiles(peer.token_file, peer.ca_file, peer.cert, peer.key)
    try:
        terms = PeerTerms(peer.name, peer.url, Scope.of(peer.repositories), files)
        async with open_peer(terms, region, Budget(None), ignore) as client:
            seen = await _meet(client, seen)
            return replace(seen, records=await _count(client, terms.scope))
    except LinkFileError as error:
        return replace(seen, failed="files", failure=str(error))
    except Refused as error:
        return replace(seen, failed="refused", failure=error.message)
    except BadContent as error:
        return replace(seen, failed="unreadable", failure=error.message)
    except RegistryError as error:
        return replace(seen, failed="silent", failure=error.message)


async def _meet(client: PeerClient, seen: PeerSeen) -> PeerSeen:
    answer = await client.request("GET", PING, seconds=STEP_SECONDS)
    date = answer.headers.get("Date", "")
    body = await client.read(answer, _MOST_WORDS, _taken)
    try:
        named = json.loads(body)["region"]
    except (ValueError, LookupError, TypeError):
        named = ""
    return replace(seen, region=str(named), skew=_skew(date))


async def _count(client: PeerClient, scope: Scope) -> int | None:
    """Return how many records there are for us, None where the region cannot say so at once.

    The first answer tells where the feed ends, the second what there is up to there.
    """
    told = await _ask(client, RootsQuestion({}, scope))
    if told.fingerprint is None:
        told = await _ask(client, RootsQuestion({told.epoch: told.head}, scope))
    return None if told.fingerprint is None else told.fingerprint[2]


async def _ask(client: PeerClient, question: RootsQuestion) -> RootsTold:
    return decode_roots(await client.ask(question.target, STEP_SECONDS), question.scope)[0]


async def _taken(count: int) -> None:
    """A few bytes need no budget."""


def look_at_tokens(config: Config) -> list[TokenFileSeen]:
    """Look at the token files of all peers and grants. Blocks on files."""
    named = [(f"peer {peer.name}", peer.token_file) for peer in config.peers]
    named += [(f"grant {grant.name}", grant.token_file) for grant in config.grants]
    return [_look_at_file(of, path) for of, path in named if path is not None]


def _look_at_file(of: str, path: Path) -> TokenFileSeen:
    seen = TokenFileSeen(of, path)
    try:
        seen = replace(seen, mode=stat.S_IMODE(path.stat().st_mode))
        return replace(seen, tokens=tuple(hash_token(token) for token in read_tokens(path.read_text())))
    except OSError:
        return seen
    except UnicodeDecodeError:
        return replace(seen, failure="it is not UTF-8 text")
    except ValueError as error:
        return replace(seen, failure=str(error))


def _skew(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None


def names_by_token(files: list[TokenFileSeen]) -> Mapping[bytes, list[str]]:
    """Return the grants that each token would open."""
    found: dict[bytes, list[str]] = {}
    for file in files:
        for token in set(file.tokens) if file.of.startswith("grant ") else ():
            found.setdefault(token, []).append(file.of)
    return found
