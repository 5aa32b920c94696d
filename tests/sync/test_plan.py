"""What becomes of the rows that wait, and in which order."""

from __future__ import annotations

from hypothesis import given, strategies as st

from proxy.oci.choosing import TagChoice
from proxy.oci.digest import Digest
from proxy.regions.scope import Scope
from proxy.store.exchanged import MembershipChange, TagChange
from proxy.store.records import Proof
from proxy.store.remote import RootChange, Waiting
from proxy.store.tagstate import state_of
from sync.plan import Decision, Facts, Image, Step, decide, in_order, levels, make_plan, retry_after
from sync.selection import Rules
from tests.store.contents import ALPINE, digest

NOW = 1_700_000_000.0
RULES = Rules(Scope.of(["*"]))
THREES = Rules(Scope.of(["*"]), (TagChoice.parse("3.*"),))


def tag(name: str, points_to: str | None, version: int = 5, base: int = 0) -> TagChange:
    said = None if points_to is None else str(digest(points_to))
    return TagChange(0, 0, name, version, said, None, None, "east", NOW, NOW, base=base)


def root(name: str, *, subject: str = "", removed: bool = False) -> MembershipChange:
    about = str(digest(subject)) if subject else ""
    return MembershipChange(0, 0, str(digest(name)), 5, removed, Proof.SYNCED, NOW, about)


def waits(record: RootChange) -> Waiting:
    return Waiting("east", 0, ALPINE, record, NOW, 0, 0.0, None)


def step(record: RootChange, facts: Facts | None = None, rules: Rules = RULES) -> Step:
    return decide(waits(record), facts or Facts(), rules, NOW).step


def test_a_tag_is_fetched_where_it_moves_and_applied_where_ours_prevails() -> None:
    ours = state_of(tag("3.18", "ours", version=9))
    assert step(tag("3.18", "theirs")) is Step.FETCH
    assert step(tag("3.18", "theirs"), Facts(ours)) is Step.APPLY
    assert step(tag("3.18", "theirs", version=10), Facts(ours)) is Step.FETCH
    assert step(tag("edge", "theirs"), rules=THREES) is Step.APPLY


def test_a_removal_is_one_only_where_something_is_removed() -> None:
    assert step(tag("3.18", None)) is Step.APPLY
    assert step(tag("3.18", None), Facts(state_of(tag("3.18", "ours", version=4)))) is Step.REMOVE
    assert step(tag("3.18", None), Facts(state_of(tag("3.18", "ours", version=9)))) is Step.APPLY
    assert step(root("image", removed=True)) is Step.REMOVE


def test_a_version_of_a_clock_ahead_is_held_also_where_it_is_of_an_entry_before() -> None:
    ahead = tag("3.18", "x", version=int((NOW + 86400) * 1000) << 16)
    assert step(ahead) is Step.HOLD


def test_what_refers_to_an_image_waits_for_the_images_that_it_may_refer_to() -> None:
    signature = root("signature", subject="image")
    assert step(signature, Facts(others_wait=True), THREES) is Step.HOLD
    assert step(signature, Facts(), THREES) is Step.APPLY
    assert step(signature, Facts(about=("3.18",)), THREES) is Step.FETCH
    assert step(signature, Facts(others_wait=True)) is Step.FETCH


def test_rows_of_one_digest_are_one_image() -> None:
    rows = [waits(record) for record in (root("x"), tag("3", "x"), tag("latest", "x"), tag("other", "y"))]
    plan = make_plan([(row, decide(row, Facts(), RULES, NOW)) for row in rows])
    assert sorted(len(image.rows) for image in plan.images) == [1, 3]


names = st.sampled_from("abcdefgh")
images = st.dictionaries(names, st.tuples(st.none() | st.integers(0, 9), st.none() | names)).map(
    lambda said: [
        Image(ALPINE, digest(name), digest(subject) if subject else None, [waits(root(name))], size)
        for name, (size, subject) in said.items()
    ]
)


@given(images)
def test_every_image_is_in_the_order_once_and_sizes_grow_where_nothing_refers(planned: list[Image]) -> None:
    ordered = in_order(planned)
    assert sorted(image.digest for image in ordered) == sorted(image.digest for image in planned)
    alone = [image for image in planned if image.subject is None]
    if len(alone) == len(planned):
        sizes = [image.size for image in ordered]
        known = [size for size in sizes if size is not None]
        assert sizes == sorted(known) + [None] * (len(sizes) - len(known))


@given(images)
def test_what_refers_to_an_image_comes_after_it_in_a_later_group(planned: list[Image]) -> None:
    by_digest = {image.digest: image for image in planned}
    group = {image.digest: number for number, level in enumerate(levels(in_order(planned))) for image in level}
    for image in planned:
        if image.subject in by_digest and not _in_circle(image, by_digest):
            assert group[image.digest] > group[by_digest[image.subject].digest]


def _in_circle(image: Image, by_digest: dict[Digest, Image]) -> bool:
    seen: set[Digest] = set()
    here: Image | None = image
    while here is not None and here.digest not in seen:
        seen.add(here.digest)
        here = by_digest.get(here.subject) if here.subject else None
    return here is not None


@given(st.lists(st.tuples(st.sampled_from(list(Step)), names)))
def test_no_row_is_lost_and_none_is_in_two_places(said: list[tuple[Step, str]]) -> None:
    decided = [(waits(root(name)), Decision(kind, digest(name))) for kind, name in said]
    plan = make_plan(decided)
    placed = sum(len(image.rows) for image in plan.images) + len(plan.at_once) + len(plan.removals) + len(plan.held)
    assert placed == len(decided)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_retries_are_between_a_few_seconds_and_an_hour_apart(tries: int, chance: float) -> None:
    assert 3.75 <= retry_after(tries, chance) <= retry_after(tries + 1, chance) <= 3600
