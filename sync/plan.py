"""What is to be done about the rows that wait, and in which order. Pure: no I/O, no clock but arguments.

Images go smallest first, so that many are there early; what refers to an image goes after it; removals are last.
What one image consists of is found out by `walking`, who does it all is the engine.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from proxy.oci.digest import Digest
from proxy.oci.names import Repository
from proxy.store.exchanged import MembershipChange, TagChange, is_ahead
from proxy.store.merging import newest_version
from proxy.store.remote import Waiting
from proxy.store.tagstate import State, join, state_of
from sync.selection import Rules, refers_to, why_no_referrer, why_no_root, why_no_tag

FIRST_RETRY = 5.0
LAST_RETRY = 3600.0


class Step(enum.Enum):
    """What is done about a row. APPLY: at once, without bytes. HOLD: not yet, as what it needs is still to come."""

    FETCH = "fetch"
    APPLY = "apply"
    REMOVE = "remove"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one row. known: what the catalog says of the tag. about: tags that lead to what it refers to.

    newest: those that may be chosen of its repository, None without such a limit. others_wait: further tags of the
    repository wait, one of which may lead there.
    """

    known: State | None = None
    about: tuple[str, ...] = ()
    newest: Container[str] | None = None
    others_wait: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """digest: what is fetched, or what becomes of the tag; None where it is removed. reason: why it is no fetch."""

    step: Step
    digest: Digest | None
    subject: Digest | None = None
    reason: str = ""


@dataclass(slots=True)
class Image:
    """What is fetched as one: the rows that are done with it, and, once it was looked at, what it still needs."""

    repository: Repository
    digest: Digest
    subject: Digest | None
    rows: list[Waiting] = field(default_factory=list)
    size: int | None = None

    @property
    def tags(self) -> list[TagChange]:
        return [row.record for row in self.rows if isinstance(row.record, TagChange)]

    def __str__(self) -> str:
        return reference_of(self.rows[0])


def subject_of(row: Waiting) -> Digest | None:
    """Return what a row refers to, by its record or by the name of its tag."""
    record = row.record
    if isinstance(record, MembershipChange):
        return Digest(record.root) if record.root else None
    return refers_to(record.name)


def reference_of(row: Waiting) -> str:
    """Return a row as people write it."""
    record = row.record
    what = f":{record.name}" if isinstance(record, TagChange) else f"@{record.digest}"
    return f"{row.repository}{what}"


def decide(row: Waiting, facts: Facts, rules: Rules, now: float) -> Decision:
    """Return what is to be done about a row."""
    record, subject = row.record, subject_of(row)
    if is_ahead(newest_version(record), now):
        return Decision(Step.HOLD, None, reason="its version is of a clock that is ahead of ours")
    if isinstance(record, MembershipChange):
        if record.removed:
            return Decision(Step.REMOVE, Digest(record.digest))
        digest = Digest(record.digest)
    else:
        said = state_of(record)
        target = join(facts.known, said)[0].digest if facts.known else said[0].digest
        here = facts.known[0].digest if facts.known else None
        if target is None:
            return Decision(Step.APPLY if here is None else Step.REMOVE, None, reason="it is removed here already")
        if target == here and join(facts.known or said, said) != facts.known:
            return Decision(Step.APPLY, Digest(target), reason="what is here prevails")
        digest = Digest(target)
    why = _why_not(record, subject, facts, rules)
    if why is None:
        return Decision(Step.FETCH, digest, subject)
    if subject is not None and rules.referrers and facts.others_wait:
        return Decision(Step.HOLD, digest, subject, "an image of its repository that it may refer to is not here yet")
    return Decision(Step.APPLY, digest, subject, why)


def _why_not(record: TagChange | MembershipChange, subject: Digest | None, facts: Facts, rules: Rules) -> str | None:
    chosen = any(why_no_tag(rules, tag, facts.newest) is None for tag in facts.about)
    if subject is not None:
        return why_no_referrer(rules, subject_chosen=chosen)
    if isinstance(record, TagChange):
        return why_no_tag(rules, record.name, facts.newest)
    return why_no_root(rules, tagged=chosen)


@dataclass(slots=True)
class Plan:
    """images: to be fetched, in order. at_once: applied without bytes, with the reason; removals and held: as such."""

    images: list[Image] = field(default_factory=list)
    at_once: list[tuple[Waiting, str]] = field(default_factory=list)
    removals: list[Waiting] = field(default_factory=list)
    held: list[tuple[Waiting, str]] = field(default_factory=list)


def make_plan(decided: Sequence[tuple[Waiting, Decision]]) -> Plan:
    """Bring decisions together: rows that need the same digest in the same repository are one image."""
    plan = Plan()
    images: dict[tuple[Repository, Digest], Image] = {}
    for row, decision in decided:
        match decision.step:
            case Step.APPLY:
                plan.at_once.append((row, decision.reason))
            case Step.REMOVE:
                plan.removals.append(row)
            case Step.HOLD:
                plan.held.append((row, decision.reason))
            case Step.FETCH if decision.digest is not None:
                key = row.repository, decision.digest
                image = images.setdefault(key, Image(*key, decision.subject))
                image.rows.append(row)
    plan.images = in_order(list(images.values()))
    return plan


def in_order(images: Sequence[Image]) -> list[Image]:
    """Return the smallest first, those of unknown size last, and each after what it refers to."""
    waiting = sorted(images, key=lambda one: (one.size is None, one.size or 0, str(one.repository), one.digest))
    by_key = {(image.repository, image.digest): image for image in waiting}
    ordered: dict[tuple[Repository, Digest], Image] = {}
    for image in waiting:
        chain = [image]
        while (subject := chain[-1].subject) is not None:
            before = by_key.get((image.repository, subject))
            if before is None or any(before is one for one in chain):
                break
            chain.append(before)
        for one in reversed(chain):
            ordered.setdefault((one.repository, one.digest), one)
    return list(ordered.values())


def levels(images: Sequence[Image]) -> list[list[Image]]:
    """Return `images`, which are in order, in groups: whatever refers to an image is in a later one than that."""
    depth: dict[tuple[Repository, Digest], int] = {}
    groups: list[list[Image]] = []
    for image in images:
        above = None if image.subject is None else depth.get((image.repository, image.subject))
        own = 0 if above is None else above + 1
        depth[image.repository, image.digest] = own
        while len(groups) <= own:
            groups.append([])
        groups[own].append(image)
    return groups


def retry_after(tries: int, chance: float) -> float:
    """Return in how many seconds what failed `tries` times before is tried again; chance: of [0, 1), spreads it."""
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(tries, 20)) * (0.75 + 0.25 * chance)
