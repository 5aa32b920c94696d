"""Why an image of other regions is here, late or missing, as far as they are the reason: the facts, and their words.

Pure. The facts are gathered in `regional_facts`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from entrepot.cli.output import counted
from entrepot.config.model import PeerConfig
from entrepot.wording import format_time
from proxy.oci.choosing import TagChoice
from proxy.oci.digest import Digest
from proxy.oci.names import Reference, Repository
from proxy.regions.scope import Scope
from sync.reports import ConflictReport

Kind = Literal["image", "removal", "ahead"]


class WaitingRecord(msgspec.Struct, frozen=True):
    """What a peer says of the reference, and is not so here yet; as `proxy.store.remote.Waiting`.

    missing: bytes of the image that are not here; None while its manifest is not.
    """

    peer: str
    kind: Kind
    digest: str | None
    since: float
    tries: int
    next_at: float
    error: str | None
    missing: int | None = None


class PeerReason(msgspec.Struct, frozen=True):
    """What keeps a peer's images, or this one, from coming here.

    unchosen: why the filter leaves it out. held: why nothing is fetched now. failing: why the peer cannot be asked.
    removals_refused: why what was removed there is not removed here. None: not so, or, of the last three, not known.
    """

    peer: str
    unchosen: str | None = None
    held: str | None = None
    failing: str | None = None
    removals_refused: str | None = None


class Regional(msgspec.Struct, frozen=True):
    """What other regions have to do with a reference.

    origin: the region that saw the tag as it is here, None for our own; observed_at: when it did. removed: it saw
    that it was removed.
    """

    origin: str | None = None
    removed: bool = False
    observed_at: float | None = None
    waiting: tuple[WaitingRecord, ...] = ()
    conflicts: tuple[ConflictReport, ...] = ()
    peers: tuple[PeerReason, ...] = ()


def why_unchosen(peer: PeerConfig, repository: Repository, reference: Reference) -> str | None:
    """Return why the filter of a peer may leave a reference out, None where it surely does not."""
    if not Scope.of(peer.repositories).admits(repository):
        return f"repositories ({', '.join(peer.repositories)}) does not name {repository}"
    if isinstance(reference, Digest):
        chosen = [*peer.tags, *([] if peer.newest is None else [f"the newest {peer.newest}"])]
        return f"only what the tags {', '.join(chosen)} lead to is fetched ahead" if chosen else None
    if peer.tags and not any(TagChoice.parse(text).matches(reference) for text in peer.tags):
        return f"tags ({', '.join(peer.tags)}) does not choose {reference}"
    limits = [] if peer.newest is None else [f"only the newest {peer.newest} of the tags that are chosen"]
    if peer.platforms:
        limits.append(f"of its platforms only {', '.join(peer.platforms)}")
    return f"{', and '.join(limits)} are fetched ahead" if limits else None


def regional_words(regional: Regional, *, whole: bool) -> tuple[str, ...]:
    """Return the facts in words. whole: all of the image is here, so that nothing has to be said for its absence."""
    lines = []
    if regional.origin is not None:
        when = format_time(regional.observed_at or 0)
        seen = f"what the tag is comes from region {regional.origin}, which saw it on {when}"
        lines.append(f"region {regional.origin} removed it, on {when}" if regional.removed else seen)
    peers = {peer.peer: peer for peer in regional.peers}
    for waiting in regional.waiting:
        lines.append(_waits(waiting, peers.get(waiting.peer)))
    concerned = {waiting.peer for waiting in regional.waiting}
    for peer in regional.peers:
        if peer.unchosen is not None and not whole and peer.peer not in concerned:
            lines.append(f"not fetched ahead from {peer.peer}: {peer.unchosen}")
        if peer.held is not None and (not whole or peer.peer in concerned):
            lines.append(f"nothing is fetched ahead from {peer.peer} now: {peer.held}")
        if peer.failing is not None and (not whole or peer.peer in concerned):
            lines.append(f"{peer.peer} cannot be asked what is new there: {peer.failing}")
    lines += [
        f"two regions changed the tag at once: {one.winner} of {one.winner_region} counts, {one.loser} of "
        f"{one.loser_region} is kept under its digest; found on {format_time(one.found_at)}"
        for one in regional.conflicts
    ]
    return tuple(lines)


def _waits(waiting: WaitingRecord, peer: PeerReason | None) -> str:
    said = f"since {format_time(waiting.since)} it is known that"
    match waiting.kind:
        case "removal":
            words = f"{said} {waiting.peer} removed it; it "
            if peer is not None and peer.removals_refused is not None:
                return f"{words}stays here: {peer.removals_refused}"
            if waiting.error is not None:
                return f"{words}stays here: {waiting.error}"
            return f"{words}goes here once the grace is over"
        case "ahead":
            return (
                f"{said} {waiting.peer} has {waiting.digest or 'removed it'}, by a clock ahead of ours: taken over on "
                f"{format_time(waiting.next_at)}"
            )
    missing = "its size is not known yet" if waiting.missing is None else f"{waiting.missing} bytes of it are missing"
    words = f"{said} {waiting.peer} has {waiting.digest}, which is to be fetched; {missing}"
    if waiting.tries:
        words += f"; tried {counted(waiting.tries, 'time')}, again on {format_time(waiting.next_at)}"
    return f"{words}; it failed as {waiting.error}" if waiting.error else words
