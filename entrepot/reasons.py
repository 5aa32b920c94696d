"""Why a reference is, or is not, here and served, put into words. Pure: what is known is gathered in `explaining`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from entrepot.images import Membership, memberships
from entrepot.regional_reasons import Regional, regional_words
from entrepot.wording import format_time
from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.inventory import DigestFacts, State, TagState

SHOWN = 5


class RunningFill(Protocol):
    """A download under way."""

    @property
    def digest(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def received(self) -> int: ...

    @property
    def readers(self) -> int: ...


class Missing(msgspec.Struct, frozen=True):
    """A blob that an image lacks; `size` in bytes as the manifest says."""

    digest: str
    size: int


class Why(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """The facts about a reference, and what they come to.

    served: whether a client that asks now can be given it without fetching it; None for a bare digest, as that depends
    on the repository. held: who keeps it from eviction beside pins, such as `base:SERIES`. `because` says all of it in
    words. Times are seconds since the epoch.
    """

    reference: str
    digest: str | None
    served: bool | None
    because: tuple[str, ...]
    state: State | None = None
    size: int = 0
    stored: int = 0
    public: bool = False
    pinned: bool = False
    removed: bool = False
    denied_at: float | None = None
    checked_at: float | None = None
    held: tuple[str, ...] = ()
    memberships: tuple[Membership, ...] = ()
    tags: tuple[str, ...] = ()
    named_by: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    sources: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    filling: str | None = None
    errors: tuple[str, ...] = ()
    regions: Regional | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What was gathered about one reference. `repository` None: a bare digest was asked about.

    named: a manifest that the repository is proven to contain names it. sources: who would be asked for what is
    missing. barred: which rule keeps the repository from being mirrored. said: an upstream's "not found" that is
    remembered for a moment. errors: what is wrong with the upstreams that would be asked, in words. failing: none of
    them can be reached. near: those of the sources that are asked before any upstream, and offline too.
    """

    reference: str
    repository: Repository | None
    digest: Digest | None
    tag: TagState | None
    facts: DigestFacts
    pinned: bool
    named: bool
    quarantined: tuple[str, ...]
    filling: RunningFill | None
    sources: tuple[str, ...]
    errors: tuple[str, ...]
    offline: bool
    barred: str | None = None
    said: str | None = None
    failing: bool = False
    near: tuple[str, ...] = ()
    regions: Regional | None = None


def explain(known: Known) -> Why:
    """Return the facts with what they come to, in words."""
    facts, tag = known.facts, known.tag
    served, verdict = _verdict(known)
    return Why(
        reference=known.reference,
        digest=str(known.digest) if known.digest else None,
        served=served,
        because=(verdict, *_here(known), *_proofs(known), *_uses(known), *_regions(known), *_troubles(known)),
        state=facts.state,
        size=facts.closure[0],
        stored=facts.closure[1],
        public=facts.public,
        pinned=known.pinned,
        removed=tag is not None and tag.digest is None,
        denied_at=tag.denied_at if tag is not None and _gone(tag) else None,
        checked_at=tag.checked_at if tag is not None else None,
        held=tuple(holder for holder, _ in facts.held),
        memberships=memberships(facts),
        tags=facts.tags,
        named_by=tuple(parent for parent, _ in facts.parents),
        needed_by=tuple(root for root, _ in facts.roots),
        missing=tuple(Missing(digest, size) for digest, size in facts.missing),
        sources=known.sources,
        quarantined=known.quarantined,
        filling=None if known.filling is None else f"{known.filling.received} of {known.filling.size or '?'} bytes",
        errors=known.errors,
        regions=known.regions,
    )


def _verdict(known: Known) -> tuple[bool | None, str]:
    facts, tag = known.facts, known.tag
    upstream = known.repository.upstream if known.repository else ""
    alone = _otherwise(known, upstream, ())
    otherwise = _otherwise(known, upstream, known.near)
    if known.barred is not None:
        return False, f"{known.reference} is not served: {known.barred}"
    if known.said is not None and (known.digest is None or facts.state in (None, "absent")):
        return False, f"{known.reference} is not served: {upstream} said a moment ago: {known.said}"
    if known.digest is None:
        if tag is not None:
            return False, f"{known.reference} was removed on {format_time(tag.observed_at)}; {alone}"
        return False, f"{known.reference} has never been seen here; {alone}"
    if tag is not None and _gone(tag):
        when = format_time(tag.denied_at or 0)
        said = f"{upstream} said on {when} that there is no such tag, or that it may not be read"
        return False, f"{known.reference} is not served: {said}. What it was is kept, and {upstream} is asked again"
    if facts.state in (None, "absent"):
        return (
            False,
            f"{known.reference} is not stored; {otherwise if known.repository else 'it must be fetched again'}",
        )
    if known.repository is None:
        return None, f"{known.reference} is stored; it is served to the repositories that are proven to contain it"
    if not _member(known) and not (facts.public and known.named):
        if known.offline:
            return False, f"{known.reference} is not served: nothing proves that {known.repository} contains it"
        return False, f"{known.reference} is stored, but served only once {upstream} confirms that it is there"
    if facts.state == "partial":
        if known.near and (known.failing or known.offline):
            return False, f"{known.reference} is served only while others have what it lacks; that is {otherwise}"
        if known.failing and not known.offline:
            return False, (
                f"{known.reference} is not served while {upstream} fails: what it lacks cannot be fetched, "
                "and clients would wait for it in vain"
            )
        return not known.offline, f"{known.reference} is served in part: what it lacks is {otherwise}"
    return True, f"{known.reference} is served from the store"


def _otherwise(known: Known, upstream: str, near: Sequence[str]) -> str:
    """Return what becomes of a question for what is not here."""
    others = " or ".join(near)
    if known.offline:
        return (
            f"had from {others}, if it is there: the mirror is offline" if near else "not served: the mirror is offline"
        )
    if known.failing and near:
        return f"had from {others}, if it is there, as {upstream} fails"
    if known.failing:
        return f"not served while {upstream} fails, fetched after that"
    return f"fetched from {f'{others}, or else from ' if near else ''}{upstream} when it is asked for"


def _here(known: Known) -> list[str]:
    facts = known.facts
    if facts.state is None:
        known_of = facts.proofs or facts.tags
        return ["it is known of, and its bytes have never been here"] if known_of else []
    size, stored = facts.closure
    parts = f"{stored} of {size} bytes of all that it needs are here"
    match facts.state:
        case "absent":
            lines = [f"it was stored once and is not here now: evicted, lost or set aside; {parts}"]
        case "partial" | "servable":
            lines = [f"it is {facts.state}: {parts}"]
        case _:
            lines = [f"it is complete, {size} bytes, first stored on {format_time(facts.stored_at or 0)}"]
    if facts.missing and facts.state != "absent":
        names = ", ".join(f"{digest} ({size} bytes)" for digest, size in facts.missing[:SHOWN])
        more = f" and {len(facts.missing) - SHOWN} more" if len(facts.missing) > SHOWN else ""
        lines.append(
            f"missing: {names}{more}; to be had from {', '.join(known.sources) or 'nobody that is configured'}"
        )
    return lines


def _proofs(known: Known) -> list[str]:
    words = {
        "fetched": "it was fetched through it",
        "head": "the upstream confirmed it",
        "imported": "it was imported",
        "synced": "another region said so",
    }
    lines = [
        f"{repository} is proven to contain it: {words.get(proof, proof)} on {format_time(when)}"
        for repository, proof, when in known.facts.proofs[:SHOWN]
    ]
    if known.repository and known.facts.public and known.named and not _member(known):
        lines.append(f"{known.repository} may have it: it is public, and a manifest of that repository names it")
    if known.facts.state is not None and not known.facts.proofs:
        lines.append("no repository is proven to contain it: whoever asks for it must have the upstream's word")
    return lines


def _uses(known: Known) -> list[str]:
    facts = known.facts
    lines = []
    if facts.tags:
        lines.append(f"tags that point to it: {', '.join(facts.tags[:SHOWN])}")
    if facts.parents:
        lines.append(f"named by {', '.join(parent for parent, _ in facts.parents[:SHOWN])}")
    above = [root for root, _ in facts.roots if root not in facts.tags]
    if above:
        lines.append(f"needed by {', '.join(above[:SHOWN])}")
    keepers = [root for root, pinned in facts.roots if pinned]
    if known.pinned:
        lines.append("it is pinned: eviction leaves it alone")
    elif keepers:
        lines.append(f"kept by the pin of {', '.join(keepers[:SHOWN])}")
    elif facts.state not in (None, "absent"):
        lines.append(f"it is not pinned, and was last used on {format_time(facts.last_use or 0)}")
    return lines + [_hold(holder, until) for holder, until in facts.held[:SHOWN]]


def _hold(holder: str, until: float) -> str:
    kind, _, name = holder.partition(":")
    if kind == "base":
        return (
            f"the next bundle of the series {name} may stand on it: eviction leaves it alone until "
            f"entrepot bundle release {name}"
        )
    return f"an {kind} needs it ({name[:12]}): eviction leaves it alone until {format_time(until)}"


def _troubles(known: Known) -> list[str]:
    lines = [f"set aside as damaged: {name}" for name in known.quarantined]
    if known.filling is not None:
        fill = known.filling
        lines.append(
            f"being fetched now from {fill.source}: {fill.received} of {fill.size or '?'} bytes, {fill.readers} readers"
        )
    return [*lines, *known.errors]


def _member(known: Known) -> bool:
    return any(repository == str(known.repository) for repository, _, _ in known.facts.proofs)


def _gone(tag: TagState) -> bool:
    return tag.denied_at is not None and tag.denied_at >= tag.checked_at


def _regions(known: Known) -> tuple[str, ...]:
    if known.regions is None:
        return ()
    return regional_words(known.regions, whole=known.facts.state == "complete")
