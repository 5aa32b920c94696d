"""What an import would do, and why it may not: decided from what was gathered. Pure, no I/O.

All refusals are told together, so that a person with a disk in the hand walks once. What the store says is read in
`gathering`; what is checked again once everything is here, in `publishing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store import tagstate
from proxy.store.exchanged import AHEAD_SECONDS, TagChange, is_ahead
from proxy.store.merging import newest_version
from proxy.store.tagstate import State, state_of
from sync.bundle.errors import Refused
from sync.bundle.plan import Image, Plan, change_of, reference_of

MOST_NAMED = 10
MAX_DEPTH = 8

Change = Literal["new", "moved", "same", "kept"]
Allowed = Callable[[Repository], str | None]
"""Says why a repository may not be written to; None where it may."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a manifest names: (digest, required) of each child. index: of which one that is whole will do."""

    index: bool
    children: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes: `may` is what could be stored beside what has to stay, `staged` the slices to be set aside."""

    may: int
    staged: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found here, at `now` (seconds since the epoch).

    vouched: a trusted key has signed it. here: digests of the plan that are stored. public: those of them that anybody
    may have, or that bundles before it bring. members: (number of the repository, digest) of what is required and that
    the repository is known to contain, where the bundle is not vouched for. tags: by the number of the image, what is
    known of its tag. contents: of the manifests that are at hand. imported: this plan was published here before, and
    its images are proven.
    """

    now: float
    vouched: bool
    here: Set[str]
    public: Set[str]
    members: Set[tuple[int, str]]
    tags: Mapping[int, State]
    contents: Mapping[str, Contents]
    room: Room
    imported: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What becomes of an image's tag. here: the digest that it has here before, None for none.

    told: it is brought together with what is known here. seen: it is stamped anew (`--force`).
    """

    image: Image
    change: Change
    here: str | None
    told: TagChange | None
    seen: bool


@dataclass(frozen=True, slots=True)
class Examined:
    """What an import would do: bytes that are taken in and that are here already, and the tags."""

    needed: int
    had: int
    tags: tuple[Standing, ...]
    unchanged: bool
    refusals: tuple[str, ...]

    def require(self) -> None:
        """Raise Refused, with all reasons, where it may not be done."""
        if self.refusals:
            raise Refused("\n".join(self.refusals))


def examine(plan: Plan, facts: Facts, allowed: Allowed, *, force: bool) -> Examined:
    """Return what an import of the plan would do, and all that speaks against it."""
    needed = sum(blob.size for blob in plan.blobs if blob.digest not in facts.here)
    tags = tuple(standing(image, facts.tags.get(at), facts.now, force=force) for at, image in enumerate(plan.images))
    unchanged = (
        facts.imported
        and not needed
        and all(digest in facts.here for digest in digests_of(plan))
        and not any(one.told or one.seen for one in tags)
    )
    refusals = [
        *_forbidden(plan, allowed),
        *_contradictory(plan),
        *([] if force else _ahead(plan, facts.now)),
        *_lacking_base(plan, facts),
        *_not_whole(plan, facts),
        *_short_of_room(needed, facts.room),
    ]
    return Examined(needed, plan.size - needed, tags, unchanged, tuple(refusals))


def standing(image: Image, known: State | None, now: float, *, force: bool) -> Standing:
    """Return what becomes of an image's tag where `known` is what this site knows of it."""
    said = change_of(image)
    if said is None:
        return Standing(image, "same", image.digest, None, False)
    here = known[0].digest if known else None
    told = None if is_ahead(newest_version(said), now) else said
    joined = tagstate.join(known or (), state_of(said)) if told else known
    if joined == known:
        told = None
    seen = force and (joined is None or joined[0].digest != image.digest)
    becomes = image.digest if seen or joined is None else joined[0].digest
    if here == image.digest:
        return Standing(image, "same", here, told, seen)
    if becomes != image.digest:
        return Standing(image, "kept", here, told, False)
    return Standing(image, "moved" if known else "new", here, told, seen)


@dataclass(slots=True)
class Closure:
    """What an image is made of. lacking: (manifest, digest) of what it needs and what is not available.

    empty: indexes of which no child is available. deep: it goes on below MAX_DEPTH.
    """

    digests: set[str] = field(default_factory=set)
    lacking: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    deep: bool = False

    @property
    def whole(self) -> bool:
        return not (self.lacking or self.empty or self.deep)


def closure(top: str, contents: Mapping[str, Contents], available: Set[str]) -> Closure:
    """Return what of `top` is available; a digest without contents names nothing. Children of an index may be away."""
    found = Closure()
    level = [top]
    if top not in available:
        found.lacking.append((top, top))
        return found
    for _ in range(MAX_DEPTH + 1):
        below: dict[str, None] = {}
        for digest in level:
            found.digests.add(digest)
            named = contents.get(digest)
            if named is None:
                continue
            there = [child for child, _ in named.children if child in available]
            below.update((child, None) for child in there if child not in found.digests)
            if named.index:
                if named.children and not there:
                    found.empty.append(digest)
            else:
                lacking = (child for child, required in named.children if required and child not in available)
                found.lacking += ((digest, child) for child in lacking)
        level = list(below)
        if not level:
            return found
    found.deep = True
    return found


def some(names: Sequence[str]) -> str:
    """Return up to MOST_NAMED names for people, and how many there are besides."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def _forbidden(plan: Plan, allowed: Allowed) -> list[str]:
    reasons = (allowed(repository) for repository in plan.names)
    return list(dict.fromkeys(reason for reason in reasons if reason is not None))


def _contradictory(plan: Plan) -> list[str]:
    """A tag whose past is newer than itself would come out as something that is not in the bundle."""
    wrong = []
    for image in plan.images:
        said = change_of(image)
        if said is not None and (
            any(past.version >= said.version or past.digest == said.digest for past in said.others)
            or not tagstate.describes(state_of(said))
        ):
            wrong.append(reference_of(plan, image))
    return [f"the plan contradicts itself about the past of {some(wrong)}: export it again"] if wrong else []


def _ahead(plan: Plan, now: float) -> list[str]:
    ahead = []
    for image in plan.images:
        said = change_of(image)
        if said is not None and is_ahead(newest_version(said), now):
            seconds = (newest_version(said) >> 16) / 1000 - now
            ahead.append(f"{reference_of(plan, image)} by {_duration(seconds)}")
    if not ahead:
        return []
    return [
        f"tags are of a time more than {AHEAD_SECONDS / 60:.0f} minutes ahead of this clock: {some(ahead)}. Set the "
        "clock here, or take them as if seen now with --force"
    ]


def _lacking_base(plan: Plan, facts: Facts) -> list[str]:
    missing = [one for one in plan.requires if one.digest not in facts.here]
    if not missing:
        return []
    names = [f"{one.digest} of {plan.repositories[one.repository]}" for one in missing]
    return [
        f"of the {len(plan.requires)} blobs that this thin bundle stands on this site lacks {len(missing)}: "
        f"{some(names)}. Import what has them first: {_bases(plan)}"
    ]


def _not_whole(plan: Plan, facts: Facts) -> list[str]:
    """Tell what lacks a part, and what takes over a part that its repository may not have for the asking (P43)."""
    required = {one.digest for one in plan.requires}
    available = {blob.digest for blob in plan.blobs} | required
    doubtful = set() if facts.vouched else required & facts.here - facts.public
    told: dict[str, None] = {}
    unproven: dict[str, None] = {}
    # Of what many images have nothing is kept but what is to be told of it: there may be tens of thousands.
    seen: dict[str, tuple[Closure | None, tuple[str, ...]]] = {}
    for image in plan.images:
        if image.digest not in seen:
            found = closure(image.digest, facts.contents, available)
            seen[image.digest] = (None if found.whole else found, tuple(sorted(found.digests & doubtful)))
        wrong, borrowed = seen[image.digest]
        if wrong is not None:
            told[why_not_whole(reference_of(plan, image), wrong)] = None
        for digest in borrowed:
            if (image.repository, digest) not in facts.members:
                unproven[f"{digest} of {plan.repositories[image.repository]}"] = None
    return [*told, *([unproven_words(list(unproven), plan)] if unproven else [])]


def unproven_words(names: Sequence[str], plan: Plan) -> str:
    """Return why a bundle that nobody vouches for may not take over blobs of other repositories."""
    return (
        "the bundle is not signed by a trusted key, so it may not take over what only other repositories are known to "
        f"contain here: {some(names)}. Sign it, or import what it stands on: {_bases(plan)}"
    )


def _bases(plan: Plan) -> str:
    return ", ".join(f"{one.label} ({one.kind} {one.name})" for one in plan.bases) or "its base"


def why_not_whole(reference: str, found: Closure) -> str:
    """Return what is wrong with an image, and what to do."""
    if found.lacking:
        names = [f"{child} (named by {parent})" for parent, child in found.lacking]
        return f"{reference} needs what the bundle neither brings nor requires: {some(names)}. Export it again"
    if found.empty:
        return f"{reference} has no platform that the bundle brings: {some(found.empty)} names others. Export it again"
    return f"{reference} has indexes in indexes, more than {MAX_DEPTH} deep: it cannot be taken over"


def _short_of_room(needed: int, room: Room) -> list[str]:
    if needed + room.staged <= room.may:
        return []
    return [
        f"there is no room: the import needs {needed + room.staged} bytes and may have {room.may}, all that is neither "
        "pinned nor held counted as free. Raise the quota, unpin images, or give the data folder a larger volume"
    ]


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def digests_of(plan: Plan) -> list[Digest]:
    """Return all digests that the plan is about."""
    return [*(Digest(blob.digest) for blob in plan.blobs), *(Digest(one.digest) for one in plan.requires)]
