"""Globs over names (DESIGN: `*` one component, `**` many, a lone `*` all)."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, strategies as st

from proxy.oci.globs import Glob, first_match

_PIECE = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "**"])
_NAMES = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5).map("/".join)


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("*", "library/alpine", True),
        ("*", "a/b/c/d", True),
        ("library/*", "library/alpine", True),
        ("library/*", "library/a/b", False),
        ("library/*", "library", False),
        ("library/*", "mylibrary/alpine", False),
        ("library/**", "library/a/b", True),
        ("library/**", "library", False),
        ("**/app", "app", True),
        ("**/app", "team/x/app", True),
        ("**/app", "team/myapp", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("team-*/app", "team-1/app", True),
        ("team-*/app", "team-1/x/app", False),
        ("**", "a/b", True),
        ("*/*", "a/b", True),
        ("*/*", "a", False),
        ("lib.ary/x", "library/x", False),
        ("3.*", "3.18", True),
    ],
)
def test_a_star_is_one_component_and_two_are_many(glob: str, name: str, expected: bool) -> None:
    assert Glob.parse(glob).matches(name) is expected


@pytest.mark.parametrize("text", ["", "a//b", "/a", "a/", "a**", "library/**x", "***"])
def test_a_glob_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="glob"):
        Glob.parse(text)


@given(pattern=st.lists(_PIECE, min_size=1, max_size=5), name=_NAMES)
def test_globs_match_as_the_regular_expressions_they_abbreviate(pattern: list[str], name: str) -> None:
    components = ["**"] if pattern == ["*"] else pattern
    last = len(components) - 1
    expression = ""
    for number, component in enumerate(components):
        if component == "**":
            expression += "[^/]+(?:/[^/]+)*" if number == last else "(?:[^/]+/)*"
        else:
            expression += component.replace("*", "[^/]*") + ("" if number == last else "/")
    assert Glob.parse("/".join(pattern)).matches(name) is (re.fullmatch(expression, name) is not None)


@given(name=_NAMES)
def test_a_name_matches_itself_and_the_lone_star(name: str) -> None:
    assert Glob.parse(name).matches(name)
    assert Glob.parse("*").matches(name)


def test_many_stars_do_not_explode() -> None:
    began = time.process_time()
    assert not Glob.parse("*a" * 60 + "b").matches("a" * 250)
    assert not Glob.parse("**/a/" * 30 + "b").matches("/".join(["a"] * 120))
    assert time.process_time() - began < 5


def test_the_first_that_matches_is_named() -> None:
    globs = [Glob.parse("library/*"), Glob.parse("*")]
    found = first_match(globs, "library/alpine")
    assert found is not None
    assert str(found) == "library/*"
    assert first_match(globs[:1], "other/x") is None
