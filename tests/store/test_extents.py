"""Extents against the plainest model: a set of offsets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from proxy.store.extents import Extents

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def offsets(added: list[tuple[int, int]]) -> set[int]:
    return {offset for start, end in added for offset in range(start, end)}


@given(spans)
def test_holds_exactly_what_was_added_sorted_disjoint_and_merged(added: list[tuple[int, int]]) -> None:
    extents = Extents(added)
    held = list(extents)
    assert offsets(held) == offsets(added)
    assert all(end < start for (_, end), (start, _) in pairwise(held))
    assert all(start < end for start, end in held)


@given(spans)
def test_contiguous_is_the_first_offset_that_is_not_there(added: list[tuple[int, int]]) -> None:
    there = offsets(added)
    assert Extents(added).contiguous() == next(offset for offset in range(200) if offset not in there)


@given(spans, st.integers(0, 90))
def test_missing_is_the_rest_of_the_blob(added: list[tuple[int, int]], size: int) -> None:
    extents = Extents(added)
    missing = extents.missing(size)
    assert offsets(missing) == set(range(size)) - offsets(added)
    for start, end in missing:
        extents.add(start, end)
    assert extents.contiguous() >= size


@given(spans)
def test_order_of_arrival_does_not_matter(added: list[tuple[int, int]]) -> None:
    assert Extents(added) == Extents(reversed(added))


@pytest.mark.parametrize("span", [(-1, 3), (5, 4)])
def test_what_is_no_span_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a span"):
        Extents().add(*span)
