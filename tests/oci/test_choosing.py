"""Which tags are meant by a glob and by a range of versions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from proxy.oci.choosing import TagChoice, TagVersion

numbers = st.lists(st.integers(0, 99), min_size=1, max_size=4)
tags = st.from_regex(r"\A[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}\Z")


def written(parts: list[int]) -> str:
    return ".".join(map(str, parts))


@pytest.mark.parametrize(
    ("choice", "chosen", "left_out"),
    [
        ("latest", ["latest"], ["latest-1", "Latest", "3"]),
        ("3.*", ["3.18", "3.18-alpine", "3."], ["3", "31.0"]),
        ("*", ["latest", "3.18", "sha256-abc.sig"], []),
        (">=3.18", ["3.18", "v3.18.1", "3.19", "4", "03.018"], ["3.17.9", "latest", "3.18.4-alpine", "3.19.0-rc.1"]),
        (">=3.18 <4", ["3.18", "3.99.99"], ["4", "4.0.0", "3.17"]),
        (">=3.18-alpine <4", ["3.18-alpine", "3.19.1-alpine"], ["3.19", "3.19-slim", "4.0-alpine"]),
        (">=1.2.0-rc.1 <2", ["1.2.0-rc.1", "1.2.0-rc10", "1.2.0", "1.9-beta"], ["1.2.0-beta.2", "2.0.0-rc.1", "2"]),
        ("~1.2", ["1.2", "1.2.9"], ["1.3", "1.1", "2"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.2.2", "1.3.0"]),
        ("~1", ["1", "1.9"], ["2", "0.9"]),
        ("^1.2", ["1.2", "1.9.9"], ["2", "1.1"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3", "1", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.1"]),
        ("~1.2-alpine", ["1.2.5-alpine"], ["1.2.5", "1.3-alpine"]),
        ("<=4 >1", ["4"], ["4.1.0.Final", "4.0.Beta1"]),
        ("3.x", ["3.x", "3", "3.18.1"], ["4", "2.9", "3.18-alpine"]),
        ("==3.18", ["3.18", "3.18.0", "v3.18"], ["3.18.1"]),
        (">=3 !=3.5", ["3", "3.6"], ["3.5", "3.5.0", "3.6-rc1"]),
        (">1.2.3.4", ["1.2.3.5", "1.3"], ["1.2.3.4", "1.2.3"]),
        (">=22.04 <25", ["22.04", "24.04", "24.4"], ["20.04", "25.04", "20240131"]),
        (">=20240101", ["20240131", "20250101"], ["3.18", "20231231"]),
        ("<=2", ["2", "1"], ["2.1", "2.0-rc1"]),
        (">=15.3-1", ["15.3-1", "15.4-1"], ["15.4", "15.4-2"]),
    ],
)
def test_a_choice_means_just_these_tags(choice: str, chosen: list[str], left_out: list[str]) -> None:
    parsed = TagChoice.parse(choice)
    assert [tag for tag in chosen + left_out if parsed.matches(tag)] == chosen


@pytest.mark.parametrize(
    "text", ["", "a b", "docker.io/alpine", ">=", ">=latest", ">=3 latest", ">= 3", "~", "^x", "<4a"]
)
def test_what_can_choose_nothing_is_refused_with_the_form_that_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as|\*\* must"):
        TagChoice.parse(text)


@pytest.mark.parametrize("tag", ["latest", "4e5f6a7", "v", "", "1a", "sha256-00", "stable-1.2", "1.", "1.2ab"])
def test_names_and_hashes_are_no_versions(tag: str) -> None:
    assert TagVersion.parse(tag) is None


def test_pre_releases_come_in_the_order_of_semver_and_before_their_release() -> None:
    order = ["1.0-alpha", "1.0-alpha.1", "1.0-beta.2", "1.0-beta11", "1.0rc1", "1.0-rc.9", "1.0-rc10", "1.0", "1.0.0.1"]
    versions = [version for version in map(TagVersion.parse, order) if version is not None]
    assert len(versions) == len(order)
    assert all(earlier < later for earlier, later in pairwise(versions))


@given(numbers, numbers)
def test_a_version_is_in_exactly_one_of_two_halves(one: list[int], other: list[int]) -> None:
    below, above = TagChoice.parse(f"<{written(one)}"), TagChoice.parse(f">={written(one)}")
    assert below.matches(written(other)) != above.matches(f"v{written(other)}")


@given(numbers, numbers)
def test_a_version_compares_as_its_numbers_do(one: list[int], other: list[int]) -> None:
    longer = max(len(one), len(other))
    padded = [parts + [0] * (longer - len(parts)) for parts in (one, other)]
    assert TagChoice.parse(f">={written(one)}").matches(written(other)) == (padded[1] >= padded[0])


@given(numbers, numbers)
def test_a_caret_keeps_within_a_tilde_keeps_within_the_first_number(one: list[int], other: list[int]) -> None:
    tag = written(other)
    for operator in "~^":
        if TagChoice.parse(f"{operator}{written(one)}").matches(tag):
            assert other[0] == one[0] or (operator == "^" and not any(one))


@given(tags, tags)
def test_no_tag_is_too_strange_to_be_judged(text: str, tag: str) -> None:
    assert TagChoice.parse(text).matches(text)
    for operator in (">=", "~", "^", "<"):
        try:
            choice = TagChoice.parse(operator + text)
        except ValueError:
            assert TagVersion.parse(text) is None
        else:
            assert choice.matches(text) == (operator != "<") or TagVersion.parse(text) is None
        if TagVersion.parse(tag) is None and TagVersion.parse(text) is not None:
            assert not TagChoice.parse(operator + text).matches(tag)
