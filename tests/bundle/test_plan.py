"""Plans that are wrong, too large, or of another time: refused in words, whatever is in them."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from proxy.store.exchanged import Past
from sync.bundle import layout
from sync.bundle.errors import BundleError, Damaged, Refused
from sync.bundle.plan import MAX_BLOBS, MAX_PLAN, MAX_VALUES, Blob, Cut, Required, Sealed, read_plan, write_plan
from tests.bundle.writing import plan_of, seal_for
from tests.support.contents import blob, make_image, make_index

CHILD = make_image([blob(3000), blob(9000, 1), b""])
IMAGES = [
    ("docker.io/library/alpine:3.20", make_index({"linux/amd64": CHILD})),
    ("quay.io/team/app:1", CHILD),
]


def sealed_plan() -> Sealed:
    plan, blobs, _ = plan_of(IMAGES)
    return seal_for(plan, blobs, split=14_000)


SEALED = sealed_plan()
WRITTEN: dict[str, Any] = json.loads(SEALED.body)


def changed(**fields: Any) -> bytes:
    return json.dumps(WRITTEN | fields).encode()


@pytest.mark.parametrize("newer", [b'{"format":"entrepot-bundle/2"}', changed(format="entrepot-bundle/12", more=[])])
def test_plan_of_a_later_format_is_told_to_be_of_a_newer_version(newer: bytes) -> None:
    with pytest.raises(Refused, match=r"by a newer version of entrepot: its format is entrepot-bundle/1?2,"):
        read_plan(newer)


@pytest.mark.parametrize("other", ["entrepot-bundle/x", "another/2", "entrepot-bundle/", 7, None])
def test_plan_of_no_format_that_will_ever_be_is_damaged(other: object) -> None:
    with pytest.raises(Damaged):
        read_plan(changed(format=other))


@pytest.mark.parametrize(
    "many",
    [
        b'{"repositories":[' + b'"a",' * MAX_VALUES + b'"a"],"repositories":[]}',
        b'{"volumes":[' + b"[0,0]," * (MAX_VALUES // 2) + b"[0,0]]}",
        b"[" * (MAX_VALUES + 1),
        b'{"a":' * (MAX_VALUES + 1),
    ],
    ids=["strings", "cuts", "arrays", "objects"],
)
def test_plan_of_many_tiny_values_is_refused_before_it_is_decoded(many: bytes) -> None:
    with pytest.raises(Refused, match="more than 1048576 values; ask for several bundles"):
        read_plan(many)
    with pytest.raises(Refused, match="bytes, more than the 25165824 that are allowed; ask for several bundles"):
        read_plan(b" " * (MAX_PLAN + 1))


def test_bundle_brings_and_needs_no_more_blobs_together_than_it_may() -> None:
    def digest(number: int) -> str:
        return f"sha256:{number:064x}"

    plan = msgspec.structs.replace(
        SEALED.plan,
        images=(),
        blobs=(Blob(digest(0), 1, 0),),
        volumes=(Cut(0, 0),),
        slices=(),
        requires=tuple(Required(digest(number), 1, 0) for number in range(1, MAX_BLOBS)),
    )
    assert len(read_plan(write_plan(plan)).plan.requires) == MAX_BLOBS - 1
    with pytest.raises(BundleError, match=f"names {MAX_BLOBS + 1} blobs, more than {MAX_BLOBS}.*by repository"):
        layout.seal(msgspec.structs.replace(plan, blobs=(*plan.blobs, Blob(digest(MAX_BLOBS), 1, 0))))


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        (("images", 0), "size", 5),
        (("images", 0), "media_type", "text/plain"),
        (("images", 0, "tag"), "observed_at", 1e300),
        (("images", 0, "tag"), "origin", "\x1b[2J"),
        (("images", 0, "tag"), "others", [[None, 0, 0, 0, "\x1b[2J", None, None, 0]]),
        (("images", 0, "tag"), "others", [[None, 0, 0, 0, "eu", "\x9b", None, 0]]),
        ((), "series", "abc\u202ecba"),
        ((), "repositories", ["docker.io/library/alpine", "../team"]),
        ((), "repositories", ["docker.io/library/alpine", "\u202eoi.yauq/team"]),
        ((), "repositories", ["docker.io/library/alpine", "Quay.io/team"]),
        ((), "repositories", ["docker.io/library/alpine", "quay.io/a/../b"]),
        ((), "created", 1.5),
        ((), "volumes", [[0, 0], [1, 1 << 44]]),
    ],
)
def test_plan_that_contradicts_itself_or_cannot_be_shown_is_damaged(
    place: tuple[str | int, ...], field: str, value: object
) -> None:
    read_plan(json.dumps(WRITTEN).encode())
    wrong = json.loads(SEALED.body)
    inner = wrong
    for step in place:
        inner = inner[step]
    inner[field] = value
    with pytest.raises(Damaged) as told:
        read_plan(json.dumps(wrong).encode())
    assert str(told.value).isprintable()


def paths(value: object, here: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [here] if here else []
    if isinstance(value, dict):
        found += [path for key, inner in value.items() for path in paths(inner, (*here, key))]
    if isinstance(value, list):
        found += [path for key, inner in enumerate(value) for path in paths(inner, (*here, key))]
    return found


PLACES = paths(WRITTEN)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2, 512, 1 << 44, 1 << 62, 1 << 63, 1 << 80, 0.5, 1e308, "", "a/b", [], {}]),
    st.sampled_from(PLACES).map(lambda path: at(WRITTEN, path)),
    st.text(max_size=3),
)


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3))
def test_whatever_a_plan_says_it_is_refused_or_can_be_laid_out(
    changes: list[tuple[tuple[str | int, ...], Any]],
) -> None:
    wrong = json.loads(SEALED.body)
    for path, value in changes:
        try:
            at(wrong, path[:-1])[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue
    try:
        read = read_plan(json.dumps(wrong).encode())
    except BundleError:
        return
    brought = 0
    for number in range(1, len(read.plan.volumes) + 1):
        size = layout.volume_size(read, 180, number)
        for entry in layout.entries(read, 180, number):
            assert 0 <= entry.start < entry.data <= entry.end <= size < 1 << 63
            layout.header(entry, read.plan.created)
            brought += entry.size if isinstance(entry.part, layout.BlobPart) else 0
    assert brought == read.plan.size


def test_past_of_a_tag_is_kept_as_it_is() -> None:
    past = Past(None, 1, 2, 3, "ap-south", None, None, 5.0)
    first = SEALED.plan.images[0]
    assert first.tag is not None
    tag = msgspec.structs.replace(first.tag, others=(past,))
    images = (msgspec.structs.replace(first, tag=tag), *SEALED.plan.images[1:])
    read = read_plan(write_plan(msgspec.structs.replace(SEALED.plan, images=images))).plan
    assert read.images[0].tag == tag
