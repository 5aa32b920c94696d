"""Which of a peer's records bytes are fetched for: by tags, the newest of them, platforms, referrers. Pure.

What is not chosen is no less known here: its record is merged, and its bytes are fetched when somebody asks for them.
Which repositories are read at all is the scope of the feed.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from proxy.oci.choosing import TagChoice, TagVersion
from proxy.oci.digest import Digest
from proxy.oci.manifests import Child, ParsedManifest
from proxy.oci.platforms import Platform
from proxy.regions.scope import Scope

NOT_A_TAG = "no tag of it is chosen by the filter"
NOT_THE_TAG = "the tag is not chosen by the filter"
NOT_NEWEST = "the tag is not among the newest that are chosen"
NO_REFERRERS = "referrers are not chosen"
SUBJECT_LEFT_OUT = "the image that it refers to is not chosen"

_REFERRING = re.compile(r"(?P<algorithm>sha256|sha512)-(?P<hex>[0-9a-f]{64,128})(?:\.(?:sig|att|sbom))?")
_HEX = {"sha256": 64, "sha512": 128}
_Age = tuple[bool, TagVersion, float, str]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is chosen of a peer. No `tags`: all; newest: how many of those; no `platforms`: all of them."""

    scope: Scope
    tags: tuple[TagChoice, ...] = ()
    newest: int | None = None
    platforms: tuple[Platform, ...] = ()
    referrers: bool = True

    @property
    def by_tag(self) -> bool:
        """Only what a tag leads to is chosen."""
        return bool(self.tags) or self.newest is not None

    def names(self, tag: str) -> bool:
        """Tell whether a tag is one of those of which the newest are chosen."""
        return not self.tags or any(choice.matches(tag) for choice in self.tags)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tag of a repository; observed_at: when its present digest was first seen, in seconds since the epoch."""

    name: str
    observed_at: float


def refers_to(tag: str) -> Digest | None:
    """Return the digest that a tag is about: `sha256-….sig`, `.att`, `.sbom` of cosign, or the fallback tag (P13).

    Of a sha512 digest the fallback tag has 64 characters only, by which nothing is found: it is then a tag as others.
    """
    found = _REFERRING.fullmatch(tag)
    if found is None or len(found["hex"]) != _HEX[found["algorithm"]]:
        return None
    return Digest(f"{found['algorithm']}:{found['hex']}")


class Newest:
    """The `count` newest tags that are chosen, of those that have become known.

    Versions come first, by their order; then what is no version, by when it was observed; ties by name. Tags that refer
    to an image are none of them. Takes memory for as many as are chosen.
    """

    def __init__(self, rules: Rules, count: int, candidates: Iterable[Candidate] = ()) -> None:
        self._rules = rules
        self._count = count
        self._ages: dict[str, _Age] = {}
        self._order: list[_Age] = []
        for candidate in candidates:
            self.add(candidate)

    def add(self, candidate: Candidate) -> None:
        """Take a tag into account, as it is now."""
        name = candidate.name
        if refers_to(name) is not None or not self._rules.names(name):
            return
        self.drop(name)
        age = _age(candidate)
        if len(self._order) >= self._count:
            if age < self._order[0]:
                return
            *_, oldest = self._order.pop(0)
            del self._ages[oldest]
        bisect.insort(self._order, age)
        self._ages[name] = age

    def drop(self, name: str) -> None:
        """A tag is no more; the next one in its place is known when all are looked at again."""
        age = self._ages.pop(name, None)
        if age is not None:
            self._order.remove(age)

    def __contains__(self, name: object) -> bool:
        return name in self._ages

    def __iter__(self) -> Iterator[str]:
        return iter(self._ages)

    def __len__(self) -> int:
        return len(self._ages)


def _age(candidate: Candidate) -> _Age:
    version = TagVersion.parse(candidate.name)
    plain = version is not None and not version.is_date
    return plain, version if version is not None and plain else TagVersion(()), candidate.observed_at, candidate.name


def why_no_tag(rules: Rules, tag: str, newest_here: Container[str] | None) -> str | None:
    """Return why a tag, which refers to nothing, is left out; None: it is chosen.

    newest_here: the `Newest` of its repository; None where all are chosen.
    """
    if not rules.names(tag):
        return NOT_THE_TAG
    if rules.newest is not None and newest_here is not None and tag not in newest_here:
        return NOT_NEWEST
    return None


def why_no_root(rules: Rules, *, tagged: bool) -> str | None:
    """Return why an image without a subject is left out, that chosen tags point to (`tagged`) or none does."""
    return NOT_A_TAG if rules.by_tag and not tagged else None


def why_no_referrer(rules: Rules, *, subject_chosen: bool) -> str | None:
    """Return why what refers to an image is left out."""
    if not rules.referrers:
        return NO_REFERRERS
    return None if subject_chosen or not rules.by_tag else SUBJECT_LEFT_OUT


@dataclass(frozen=True, slots=True)
class Wanted:
    """The children of a manifest that are fetched. unmatched: it has platforms, and none is one that is asked for."""

    children: tuple[Child, ...]
    unmatched: bool = False


def wanted_children(parsed: ParsedManifest, platforms: Sequence[Platform], about: Mapping[Digest, Digest]) -> Wanted:
    """Return what is fetched of a manifest's children: of an index the platforms, of any other what it requires.

    Entries without a platform are always wanted. about: which entry describes which (see `described`): an attestation
    goes with what it describes, one of nothing that is known with the first that is wanted.
    """
    if parsed.kind != "index":
        return Wanted(tuple(child for child in parsed.children if child.required))
    if not platforms or not parsed.children:
        return Wanted(parsed.children)
    images = [child for child in parsed.children if not _is_attestation(child, about)]
    chosen = {
        child.descriptor.digest
        for child in images
        if child.platform is None or any(platform.matches(child.platform) for platform in platforms)
    }
    if not chosen:
        return Wanted((), unmatched=True)
    offered = {child.descriptor.digest for child in images}
    kept = tuple(
        child
        for child in parsed.children
        if child.descriptor.digest in chosen
        or (_is_attestation(child, about) and _described_is(child, about, chosen, offered))
    )
    return Wanted(kept)


def _is_attestation(child: Child, about: Mapping[Digest, Digest]) -> bool:
    platform = child.platform
    return platform is not None and (
        (platform.os, platform.architecture) == ("unknown", "unknown") or child.descriptor.digest in about
    )


def _described_is(child: Child, about: Mapping[Digest, Digest], chosen: set[Digest], offered: set[Digest]) -> bool:
    subject = about.get(child.descriptor.digest)
    return subject in chosen or subject not in offered


class _Entry(msgspec.Struct):
    digest: str
    annotations: dict[str, object] | None = None


class _Index(msgspec.Struct):
    manifests: list[_Entry] | None = None


_decode = msgspec.json.Decoder(_Index).decode


def described(body: bytes) -> dict[Digest, Digest]:
    """Return which entry of an index, of a body that was parsed before, is an attestation of which (BuildKit)."""
    found = {}
    try:
        entries = _decode(body).manifests or ()
    except msgspec.MsgspecError:
        return {}
    for entry in entries:
        subject = (entry.annotations or {}).get("vnd.docker.reference.digest")
        if isinstance(subject, str):
            found[Digest(entry.digest)] = Digest(subject)
    return found
