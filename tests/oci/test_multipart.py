"""Several ranges in one answer: which are given, and a body that any reader of multipart takes apart again (P5)."""

from __future__ import annotations

from email import message_from_bytes, policy

import pytest
from hypothesis import given, strategies as st

from proxy.oci.errors import RangeNotSatisfiable
from proxy.oci.multipart import MAX_RANGES, choose, frame
from proxy.oci.ranges import ByteRange, parse_range

positions = st.integers(0, 120)
ranges = st.lists(
    st.one_of(
        st.builds(ByteRange, positions, st.one_of(st.none(), positions)), st.builds(ByteRange, st.none(), positions)
    ),
    min_size=1,
    max_size=MAX_RANGES + 2,
)


def chosen(header: str, size: int) -> list[tuple[int, int]] | None:
    asked = parse_range(header)
    assert asked is not None
    return choose(asked, size)


def test_ranges_stay_in_the_order_of_the_request() -> None:  # P5
    assert chosen("bytes=200-299,0-99,-10", 1000) == [(200, 300), (0, 100), (990, 1000)]


def test_neighbours_are_never_made_one() -> None:  # P5
    assert chosen("bytes=0-99,100-199", 1000) == [(0, 100), (100, 200)]


def test_ranges_without_a_byte_are_left_out() -> None:  # P5
    assert chosen("bytes=5000-6000,0-9,7-3", 1000) == [(0, 10)]


def test_no_range_with_a_byte_is_not_satisfiable() -> None:  # P4, P5
    with pytest.raises(RangeNotSatisfiable):
        chosen("bytes=5000-6000,-0", 1000)


@pytest.mark.parametrize("header", ["bytes=0-,0-", "bytes=0-599,400-999", "bytes=-1000,-1"])
def test_more_bytes_than_there_are_get_everything(header: str) -> None:  # P5
    assert chosen(header, 1000) is None


def test_more_ranges_than_the_bound_get_everything() -> None:  # P5, P45
    many = ",".join(f"{2 * n}-{2 * n}" for n in range(MAX_RANGES))
    assert len(chosen(f"bytes={many}", 1000) or ()) == MAX_RANGES
    assert chosen(f"bytes={many},999-999", 1000) is None


def test_an_empty_blob_is_given_whole() -> None:  # P6
    assert chosen("bytes=0-,5-6", 0) is None


@given(ranges, st.integers(1, 100))
def test_what_is_chosen_is_what_slicing_gives(asked: list[ByteRange], size: int) -> None:
    data = bytes(range(size))
    wanted = []
    for one in asked:
        if one.first is None:
            piece = data[-one.last :] if one.last else b""
        else:
            piece = data[one.first :] if one.last is None else data[one.first : one.last + 1]
        if piece:
            wanted.append(piece)
    try:
        spans = choose(asked, size)
    except RangeNotSatisfiable:
        assert not wanted
        assert len(asked) <= MAX_RANGES
        return
    if spans is None:
        assert len(asked) > MAX_RANGES or sum(map(len, wanted)) > size
    else:
        assert [data[start:end] for start, end in spans] == wanted


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), min_size=2, max_size=8), st.integers(200, 300))
def test_a_body_reads_back_as_its_parts(pairs: list[tuple[int, int]], size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    spans = [(start, start + length) for start, length in pairs]
    framed = frame(spans, size, "b0undary", "application/octet-stream")
    body = b"".join(part.head + data[part.start : part.end] for part in framed.parts) + framed.tail
    assert len(body) == framed.length
    message = message_from_bytes(f"Content-Type: {framed.content_type}\r\n\r\n".encode() + body, policy=policy.HTTP)
    pieces = body.split(b"--b0undary")
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    read = [piece.partition(b"\r\n\r\n")[2][:-2] for piece in pieces[1:-1]]
    assert read == [data[start:end] for start, end in spans]
    assert [(part["Content-Range"], part["Content-Type"]) for part in message.iter_parts()] == [
        (f"bytes {start}-{end - 1}/{size}", "application/octet-stream") for start, end in spans
    ]
