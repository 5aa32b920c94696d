"""Answers that were given a moment ago, ready to be sent again: manifests by their request target.

An entry is valid until its time is over or a tag has moved. An `Accept` that a tag's answer does not keep to (P21),
conditions, ranges and whatever else depends on headers go the long way; what is here is the plain answer to GET and
HEAD.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDictProxy

from proxy.oci.digest import Digest
from proxy.oci.terms import read_terms

MAX_BYTES = 32 << 20
MAX_SECONDS = 60.0
MAX_TARGET = 512
MAX_ACCEPTS = 1024
_OVERHEAD = 1024
_LONG_WAY = ("If-None-Match", "Range", "Cache-Control", "Authorization", "Transfer-Encoding", "Content-Length")


@dataclass(frozen=True, slots=True)
class HotAnswer:
    """A whole answer: `head` ends before the Date header. Times are monotonic seconds.

    media_type: what `Accept` must admit; empty where it does not count, as for a digest. confirmed: when a stale one
    was, None for any other. made: in monotonic nanoseconds, so that no two have the same.
    """

    head: bytes
    body: bytes
    expires: float
    moves: int
    upstream: str
    repository: str
    reference: str
    outcome: str
    media_type: str
    digest: Digest
    made: int
    confirmed: float | None = None


class HotResponse(web.StreamResponse):
    """Writes a HotAnswer as it is, in one piece, on a kept-alive HTTP/1.1 connection."""

    def __init__(self, answer: HotAnswer, *, with_body: bool) -> None:
        self._answer = answer
        self._with_body = with_body
        self._keep_alive = True
        self._eof_sent = False

    @property
    def status(self) -> int:
        return 200

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("client is gone")
        answer = self._answer
        date = rfc822_formatted_time().encode()
        body = answer.body if self._with_body else b""
        transport.write(b"%bDate: %b\r\n\r\n%b" % (answer.head, date, body))
        if transport.get_write_buffer_size():
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        self._eof_sent = True


class HotAnswers:
    """A bounded table of answers, the least recently used leaving first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: OrderedDict[str, HotAnswer] = OrderedDict()
        self._excluded: dict[tuple[str, ...], bool] = {}

    def get(self, request: web.BaseRequest, moves: int) -> HotAnswer | None:
        """Return the answer to `request` if there is one and no header of it asks for more."""
        target = request.raw_path
        answer = self._answers.get(target)
        if answer is None:
            return None
        if answer.moves != moves or answer.expires < monotonic():
            self._remove(target)
            return None
        if request.version != (1, 1) or not request.keep_alive or _needs_more(request.headers):
            return None
        if answer.media_type and self._excludes(request.headers.getall("Accept", ()), answer.media_type):
            return None
        self._answers.move_to_end(target)
        return answer

    def put(self, target: str, answer: HotAnswer) -> None:
        """Keep `answer` for the request target `target`."""
        self._remove(target)
        if len(target) > MAX_TARGET:
            return
        self._answers[target] = answer
        self._bytes += len(answer.body) + len(answer.head) + _OVERHEAD
        while self._bytes > self._max_bytes:
            self._remove(next(iter(self._answers)))

    def _excludes(self, accept: Sequence[str], media_type: str) -> bool:
        """Tell whether `Accept` rules the type out (P21). Clients send few different ones: the answers are kept."""
        key = (media_type, *accept)
        known = self._excluded.get(key)
        if known is None:
            known = read_terms(accept, ()).excludes(media_type)
            if sum(map(len, accept)) <= MAX_TARGET:
                if len(self._excluded) >= MAX_ACCEPTS:
                    self._excluded.clear()
                self._excluded[key] = known
        return known

    def _remove(self, target: str) -> None:
        answer = self._answers.pop(target, None)
        if answer is not None:
            self._bytes -= len(answer.body) + len(answer.head) + _OVERHEAD


def _needs_more(headers: CIMultiDictProxy[str]) -> bool:
    return any(name in headers for name in _LONG_WAY)
