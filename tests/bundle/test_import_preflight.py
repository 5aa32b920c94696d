"""What an import would do, and why it may not, decided without any I/O."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from proxy.oci.names import Repository
from proxy.store.exchanged import Past
from proxy.store.tagstate import State
from sync.bundle.plan import Plan, Required, Tagged
from sync.bundle.preflight import Contents, Examined, Facts, Room, closure, examine
from tests.bundle.writing import plan_of
from tests.support.contents import blob, make_image, make_index

NOW = 1_800_000_000.0
OTHER = "sha256:" + "0" * 64
IMAGE = make_image([blob(100)])
INDEX = make_index({"linux/amd64": IMAGE, "linux/arm64": make_image([blob(90, seed=2)], platform="linux/arm64")})
PLAN, _, _ = plan_of([("docker.io/library/alpine:3", IMAGE)])


def everywhere(repository: Repository) -> None:
    return None


def facts(plan: Plan = PLAN, **changes: object) -> Facts:
    given: dict[str, object] = {
        "now": NOW,
        "vouched": False,
        "here": frozenset(),
        "public": frozenset(),
        "members": frozenset(),
        "tags": {},
        "contents": {},
        "room": Room(1 << 40),
    }
    return Facts(**(given | changes))  # type: ignore[arg-type]


def known(digest: str | None, version: int) -> State:
    return (Past(digest, 0, version, 0, "eu-west", "text/plain" if digest else None, 1 if digest else None, 0.0),)


def examined(known_as: State | None, *, force: bool = False, plan: Plan = PLAN, now: float = NOW) -> Examined:
    return examine(plan, facts(tags={0: known_as} if known_as else {}, now=now), everywhere, force=force)


@pytest.mark.parametrize(
    ("known_as", "change"),
    [
        (None, "new"),
        (known(OTHER, 1), "moved"),
        (known(OTHER, 1 << 50), "kept"),
        (known(None, 1 << 50), "kept"),
        (known(IMAGE.digest, 1), "same"),
    ],
)
def test_a_tag_is_new_moves_stays_or_is_kept(known_as: State | None, change: str) -> None:
    (tag,) = examined(known_as).tags
    assert tag.change == change
    assert not tag.seen


def test_a_newer_tag_of_this_site_moves_back_only_by_force() -> None:
    (tag,) = examined(known(OTHER, 1 << 50), force=True).tags
    assert (tag.change, tag.seen, tag.here) == ("moved", True, OTHER)


def test_a_version_ahead_of_this_clock_is_refused_and_says_what_helps() -> None:
    image = PLAN.images[0]
    assert image.tag is not None
    later = msgspec.structs.replace(image.tag, version=int((NOW + 3600) * 1000) << 16)
    plan = msgspec.structs.replace(PLAN, images=(msgspec.structs.replace(image, tag=later),))
    (refusal,) = examined(None, plan=plan).refusals
    assert "docker.io/library/alpine:3 by 60 min" in refusal
    assert "--force" in refusal
    (tag,) = examined(None, plan=plan, force=True).tags
    assert (tag.change, tag.seen, tag.told) == ("new", True, None)
    assert not examined(None, plan=plan, force=True).refusals


def test_a_tag_whose_past_is_newer_than_itself_is_refused() -> None:
    image = PLAN.images[0]
    past = Past(OTHER, 0, 1 << 41, 0, "eu-west", "text/plain", 1, 0.0)
    assert isinstance(image.tag, Tagged)
    tag = msgspec.structs.replace(image.tag, others=(past,))
    plan = msgspec.structs.replace(PLAN, images=(msgspec.structs.replace(image, tag=tag),))
    assert "contradicts itself" in examined(None, plan=plan).refusals[0]


def test_all_refusals_are_told_together() -> None:
    lacking = Required(OTHER, 5, 0)
    plan = msgspec.structs.replace(PLAN, requires=(lacking,))
    contents = {str(IMAGE.digest): Contents(False, (("sha256:" + "1" * 64, True),))}
    found = examine(
        plan, facts(contents=contents, room=Room(10, 3)), lambda repository: f"{repository} is denied", force=False
    )
    told = "\n".join(found.refusals)
    assert "docker.io/library/alpine is denied" in told
    assert f"{OTHER} of docker.io/library/alpine" in told
    assert "neither brings nor requires: sha256:1111" in told
    assert f"needs {PLAN.size + 3} bytes and may have 10" in told
    assert len(found.refusals) == 4


def test_what_another_repository_has_is_taken_from_a_trusted_signer_only() -> None:
    plan = msgspec.structs.replace(PLAN, requires=(Required(OTHER, 5, 0),))
    here = frozenset({OTHER})
    contents = {str(IMAGE.digest): Contents(False, ((OTHER, True),))}
    found = examine(plan, facts(here=here, contents=contents), everywhere, force=False)
    assert "not signed by a trusted key" in found.refusals[0]
    ways: tuple[dict[str, object], ...] = ({"vouched": True}, {"public": here}, {"members": {(0, OTHER)}})
    for way in ways:  # P43
        assert not examine(plan, facts(PLAN, here=here, contents=contents, **way), everywhere, force=False).refusals


def test_children_of_an_index_may_be_left_out_but_not_all() -> None:
    first, second = (str(child.digest) for child in INDEX.children)
    contents = {str(INDEX.digest): Contents(True, ((first, True), (second, True)))}
    top = str(INDEX.digest)
    assert closure(top, contents, {top, first}).digests == {top, first}
    assert closure(top, contents, {top, first}).whole
    assert closure(top, contents, {top}).empty == [top]


def test_indexes_in_indexes_end_somewhere() -> None:
    contents = {str(at): Contents(True, ((str(at + 1), True),)) for at in range(20)}
    assert closure("0", contents, {str(at) for at in range(21)}).deep


@given(st.sets(st.integers(0, 5)))
def test_an_image_is_whole_when_all_that_it_requires_is_there(lost: set[int]) -> None:
    contents = {"top": Contents(False, tuple((str(at), at != 3) for at in range(5)))}
    available = {"top", *(str(at) for at in range(6) if at not in lost)}
    found = closure("top", contents, available)
    assert found.whole == (not lost - {3, 5})
    assert {child for _, child in found.lacking} == {str(at) for at in lost - {3, 5}}
