"""What the bucket answers: an open object as a stream, and failures in words that hold no URL and no secret."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from metrics.events import BucketTransferred, Emit
from proxy.oci.descriptor import OCTET_STREAM
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable

if TYPE_CHECKING:
    from obstore import GetResult

NAME = "bucket"
IDLE_SECONDS = 10.0
BEGIN_SECONDS = 5.0
"""For which the first MiB is waited for: a client that waits for it has to be served by somebody else in time (P26)."""
BEGIN = 1 << 20
CHUNK = 256 << 10
_STATUS = re.compile(r"status(?: code)?: (\d{3})")


class Opened:
    """An open object, or a part of it: a NearStream. Gives chunks of some 256 KiB, as they are asked for."""

    proven = False

    def __init__(
        self, result: GetResult, digest: Digest, emit: Emit, broken: Callable[[str, float, bool], None]
    ) -> None:
        self.digest = digest
        self.size: int = result.meta["size"]
        self.start, self.end = result.range
        self.anonymous = is_public(result.attributes)
        self.media_type = result.attributes.get("Content-Type") or OCTET_STREAM
        self._stream = result.stream(CHUNK) if self.size else None
        self._emit = emit
        self._broken = broken
        self._received = 0
        self._waited = 0.0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.start + self._received < self.end:
            since = time.monotonic()
            if self._stream is None:
                raise Unavailable(f"{self.digest} was closed at byte {self.start + self._received} of {self.end}")
            patience = IDLE_SECONDS if self._received >= BEGIN else max(0.0, BEGIN_SECONDS - self._waited)
            try:
                async with asyncio.timeout(patience):
                    chunk = await anext(self._stream)
            except StopAsyncIteration:
                raise Unavailable(
                    f"{NAME} ended {self.digest} at byte {self.start + self._received} of {self.end}"
                ) from None
            except (BaseError, OSError) as error:
                outcome, text, _ = describe(error)
                self._broken(text, since, outcome == "timeout")
                raise Unavailable(f"{NAME} broke off {self.digest}: it {text}") from None
            self._waited += time.monotonic() - since
            self._received += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        """End the request, if it still runs."""
        self._stream = None
        if self._received:
            self._emit(BucketTransferred("down", self._received))
            self._received = 0


def describe(error: Exception) -> tuple[str, str, int]:
    """Return the outcome, what happened in words that hold no URL and no secret, and the status, 0 without one."""
    if isinstance(error, TimeoutError):
        return "timeout", "did not answer in time", 0
    text = str(error)
    found = _STATUS.search(text)
    said = int(found[1]) if found is not None else 0
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or said in (401, 403):
        return "denied", "refuses the credential: see that it may list, read, write and delete there", 403
    if said:
        return "error", f"answered with {said}", said
    if "TimedOut" in text or "timed out" in text:
        return "timeout", "did not answer in time", 0
    if "BadScheme" in text:
        return "network", "has a plain-http endpoint, which needs AWS_ALLOW_HTTP=true (GOOGLE_…, AZURE_…)", 0
    if "kind: Connect" in text or "dns error" in text:
        return "network", "cannot be reached", 0
    return "network", "broke off the connection", 0


def is_public(attributes: Mapping[str, str]) -> bool:
    """Tell whether the content was once fetched anonymously."""
    return attributes.get("public") == "1"
