"""Where the body of an answer to a blob request lies in the blob (P4, P37, RFC 9110 §14-15). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.oci.errors import BadContent, Unavailable
from proxy.oci.ranges import ByteRange
from proxy.upstream.answers import Asked, ContentRange, content_length, content_range


@dataclass(frozen=True, slots=True)
class Placement:
    """The body begins at `begins`; wanted is `start` to `end` (exclusive), of `size`. None where nobody says.

    `bound`, exclusive, limits what is wanted of a body without an end.
    """

    size: int | None
    begins: int
    start: int
    end: int | None
    bound: int | None = None


def place(host: str, asked: Asked, span: ByteRange | None, status: int, headers: Mapping[str, str]) -> Placement:
    """Return where the body of a 200 or 206 lies. Raises as `place_whole` and `place_part`."""
    length = content_length(headers)
    if status == 206:
        if span is None:
            raise BadContent(f"{host} answers {asked} with a part of it that nobody asked for")
        return place_part(host, asked, span, content_range(headers), length)
    return place_whole(host, asked, span, length)


def place_whole(host: str, asked: Asked, span: ByteRange | None, length: int | None) -> Placement:
    """Return where a 200 lies: it is the whole blob, of `length` bytes, whatever range was asked for (P37).

    Raises:
        RangeNotSatisfiable: `span` has no byte of it.
        Unavailable: the last bytes are wanted, and where they begin is not known.
    """
    if span is None or length == 0:  # P6
        return Placement(length, 0, 0, length)
    if length is not None:
        start, end = span.resolve(length)
        return Placement(length, 0, start, end)
    if span.first is None:
        raise Unavailable(f"{host} neither tells the size of {asked} nor gives its last bytes alone")
    return Placement(None, 0, span.first, None, None if span.last is None else span.last + 1)


def place_part(host: str, asked: Asked, span: ByteRange, given: ContentRange | None, length: int | None) -> Placement:
    """Return where a 206 lies: `given` is its Content-Range, `length` its Content-Length.

    Raises:
        BadContent: it is not the range that was asked for.
    """
    if length == 0 and span.first is None:  # Go's answer for the last bytes of an empty blob: 206, `bytes 0--1/0`
        return Placement(0, 0, 0, 0)
    if given is None or given.first is None or given.last is None:
        raise BadContent(f"{host} answers {asked}, range {span}, with 206 and no usable Content-Range")
    end = given.last + 1
    if given.size is not None:
        right = (given.first, end) == span.resolve(given.size)
    elif span.first is None:
        right = end - given.first <= (span.last or 0)
    else:
        right = given.first == span.first and (span.last is None or given.last <= span.last)
    if not right or length not in (None, end - given.first):
        raise BadContent(
            f"{host} answers {asked}, range {span}, with the bytes {given.first}-{given.last} of {given.size or '*'}"
            f" in a body of {'unknown length' if length is None else length}"
        )
    return Placement(given.size, given.first, given.first, end)
