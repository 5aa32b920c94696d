"""The errors of the mirror: one table of code and status. How an upstream's answers become them is the client's.

Every Source raises these and nothing else for what it can foresee; `encode` turns one into the
JSON body of distribution-spec §"Error Codes" (P9). Transient ones (`Transient`) may be asked again
or elsewhere; the others are answers.
"""

from __future__ import annotations

import json
from typing import ClassVar, Self


class RegistryError(Exception):
    """What a client is told: `code` and `status` by class, message and detail by instance.

    `retry_after` is in seconds and reaches the client as `Retry-After` (P16).
    """

    code: ClassVar[str] = "UNKNOWN"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, detail: object = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after

    def again(self) -> Self:
        """Return a copy to raise: one that is kept and raised again and again would keep every caller's frames."""
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        return copy


class NotFound(RegistryError):
    """The thing does not exist there, or the caller may not know that it does."""

    status = 404


class BlobUnknown(NotFound):
    code = "BLOB_UNKNOWN"


class ManifestUnknown(NotFound):
    code = "MANIFEST_UNKNOWN"


class NameUnknown(NotFound):
    code = "NAME_UNKNOWN"


class NotServed(NotFound):
    """A part of the API that this mirror does not serve; clients fall back or ask the upstream."""

    code = "UNSUPPORTED"


class BadRequest(RegistryError):
    """The request itself is wrong."""

    status = 400


class DigestInvalid(BadRequest):
    code = "DIGEST_INVALID"


class NameInvalid(BadRequest):
    code = "NAME_INVALID"


class TagInvalid(BadRequest):
    code = "TAG_INVALID"


class PaginationNumberInvalid(BadRequest):
    code = "PAGINATION_NUMBER_INVALID"


class Unauthorized(RegistryError):
    """A login is missing or wrong; `challenge` is the `WWW-Authenticate` that says which, the mirror's own (P32)."""

    code = "UNAUTHORIZED"
    status = 401

    def __init__(
        self, message: str, *, challenge: str = "", detail: object = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, detail=detail, retry_after=retry_after)
        self.challenge = challenge


class Denied(RegistryError):
    """Refused after valid authentication: an upstream's 401 or 403 (P34)."""

    code = "DENIED"
    status = 403


class Unsupported(RegistryError):
    code = "UNSUPPORTED"
    status = 405


class RangeNotSatisfiable(RegistryError):
    """No byte of the range exists; `size` is the blob's, for `Content-Range: bytes */size`'s absence see P4."""

    code = "RANGE_INVALID"
    status = 416

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


class Transient(RegistryError):
    """It may succeed later, or from another source."""

    code = "UNAVAILABLE"
    status = 503


class TooManyRequests(Transient):
    code = "TOOMANYREQUESTS"
    status = 429


class Unavailable(Transient):
    """Network failure, timeout, 5xx: it cannot be served now (P30)."""


class GatewayTimeout(Transient):
    """A node or a region asks, and another one would have to be asked for the answer: they must not wait in turn."""

    status = 504


class BadContent(Transient):
    """A source gave bytes, a size or a type that cannot be right: never stored, never served complete (P23, P38)."""

    status = 502


def encode(error: RegistryError) -> bytes:
    """Return the JSON body of `error` (P9)."""
    entry: dict[str, object] = {"code": error.code, "message": error.message}
    if error.detail is not None:
        entry["detail"] = error.detail
    return json.dumps({"errors": [entry]}).encode()
