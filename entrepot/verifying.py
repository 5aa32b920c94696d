"""Verifying the store: the lines that tell of it, on the control socket and in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from entrepot.view import StoreView
from proxy.store.records import VerifyProgress

AT_ONCE = 2


class Verified(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """`checked` of about `total` blobs, `bytes` read."""

    checked: int
    total: int
    bytes: int


class VerifyResult(msgspec.Struct, frozen=True, tag_field="event", tag="done"):
    """What was found; the fields are those of `proxy.store.records.VerifyReport`."""

    checked: int
    bytes: int
    corrupt: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    adopted: tuple[str, ...]


class VerifyError(msgspec.Struct, frozen=True, tag_field="event", tag="error"):
    """The verification did not come to its end."""

    message: str


VerifyLine = Verified | VerifyResult | VerifyError


async def verify(store: StoreView, report: Callable[[Verified], None]) -> VerifyResult:
    """Hash every stored blob again, telling `report` after each. What is wrong has been set aside by the store."""

    def progress(at: VerifyProgress) -> None:
        report(Verified(at.checked, at.total, at.bytes))

    found = await store.verify(progress, AT_ONCE)
    return VerifyResult(
        checked=found.checked,
        bytes=found.bytes,
        corrupt=tuple(map(str, found.corrupt)),
        missing=tuple(map(str, found.missing)),
        unknown=tuple(found.unknown),
        adopted=tuple(map(str, found.adopted)),
    )
