"""Conditional requests (RFC 9110 §13, P7). The entity tag of a manifest or blob is its digest in quotes, and strong."""

from __future__ import annotations

import re

from proxy.oci.digest import Digest

_ENTITY_TAG = re.compile(r'(?:W/)?"([^"]*)"|([^\s,"]+)')


def not_modified(if_none_match: str | None, digest: Digest) -> bool:
    """Tell whether `If-None-Match` names `digest`, so that 304 is the answer.

    Weak comparison (RFC 9110 §13.1.2); digests without quotes count, as some clients send them (P7).
    """
    if if_none_match is None:
        return False
    return any(
        quoted == digest or bare in ("*", digest, f"W/{digest}") for quoted, bare in _ENTITY_TAG.findall(if_none_match)
    )


def range_applies(if_range: str | None, digest: Digest) -> bool:
    """Tell whether `Range` counts under this `If-Range`; if not, the whole is the answer (P7).

    Strong comparison (RFC 9110 §13.1.5). Dates never match, as no answer carries `Last-Modified`.
    """
    return if_range is None or if_range.strip() in (f'"{digest}"', digest)
