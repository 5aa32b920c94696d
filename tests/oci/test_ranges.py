"""Ranges mean what RFC 9110 §14 and P4 say, on every size."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from proxy.oci.errors import RangeNotSatisfiable
from proxy.oci.ranges import ByteRange, format_content_range, parse_range

positions = st.integers(0, 2**62)
byte_ranges = st.one_of(
    st.builds(ByteRange, positions, st.one_of(st.none(), positions)), st.builds(ByteRange, st.none(), positions)
)


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-", 0, 2048),
        ("bytes=0-0", 0, 1),
        ("bytes=-5000", 0, 2048),
        ("Bytes=500-1499", 500, 1500),
        (" bytes= 500-1499 ,", 500, 1500),
        ("bytes=0-99999999999999999999999999", 0, 2048),
        ("bytes=000000000000000000000000000000500-1499", 500, 1500),
    ],
)
def test_range_on_a_blob_of_2048_bytes(header: str, start: int, end: int) -> None:  # P4
    ranges = parse_range(header)
    assert ranges is not None
    assert [byte_range.resolve(2048) for byte_range in ranges] == [(start, end)]


@pytest.mark.parametrize(
    "header", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", f"bytes={'9' * 9000}-"]
)
def test_range_without_a_byte_is_not_satisfiable(header: str) -> None:  # P4
    ranges = parse_range(header)
    assert ranges is not None
    with pytest.raises(RangeNotSatisfiable) as caught:
        ranges[0].resolve(2048)
    assert (caught.value.status, caught.value.size) == (416, 2048)


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=,", "bytes=-", "bytes=a-b", "bytes=1", "bytes=1-2-3", "bytes=1--2", "items=0-1",
     "bytes 0-1", "bytes=0-1;2-3", "bytes=0 -1", "bytes=+0-1", "bytes=٣-٤", "bytes=0-1,x", "0-1", "bytes =0-1"],
)  # fmt: skip
def test_other_unit_or_broken_syntax_is_ignored(header: str) -> None:  # RFC 9110 §14.2
    assert parse_range(header) is None


@given(st.lists(byte_ranges, min_size=1), st.sampled_from([",", ", ", " ,\t", ",,"]))
def test_ranges_are_read_back_in_their_order(ranges: list[ByteRange], comma: str) -> None:  # P5
    assert parse_range("bytes=" + comma.join(map(str, ranges))) == tuple(ranges)


@given(st.text())
def test_any_header_is_read_or_ignored(text: str) -> None:
    for header in (text, f"bytes={text}"):
        ranges = parse_range(header)
        assert ranges is None or all(isinstance(each, ByteRange) for each in ranges)


@given(byte_ranges, st.integers(1, 2**62))
def test_resolved_range_lies_inside_and_holds_exactly_what_was_asked(byte_range: ByteRange, size: int) -> None:
    try:
        start, end = byte_range.resolve(size)
    except RangeNotSatisfiable:
        asked_first = size - (byte_range.last or 0) if byte_range.first is None else byte_range.first
        assert asked_first >= size or (byte_range.last is not None and byte_range.last < asked_first)
        return
    assert 0 <= start < end <= size
    if byte_range.first is None:
        assert end == size
        assert end - start == min(byte_range.last or 0, size)
    else:
        assert start == byte_range.first
        assert end == size or end - 1 == byte_range.last


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 64))
def test_small_ranges_agree_with_slicing(first: int, last: int, size: int) -> None:
    data = bytes(range(size))
    expected = data[first : last + 1]
    try:
        start, end = ByteRange(first, last).resolve(size)
    except RangeNotSatisfiable:
        assert not expected
    else:
        assert data[start:end] == expected


def test_content_range_is_written_as_the_specification_has_it() -> None:  # P4
    assert format_content_range(500, 1500, 2048) == "bytes 500-1499/2048"
