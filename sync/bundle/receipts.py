"""Receipts: that a site has imported a bundle, as a file that travels back, or as twelve digits that are read out.

The file is one of `digestfile`; which bundle the digits speak of is looked up among the plans that were exported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from proxy.oci.digest import Digest
from sync.bundle.digestfile import DigestFile, InventoryHeader, ReceiptHeader, write_digests
from sync.bundle.errors import BundleError
from sync.bundle.plan import Sealed

__all__ = ["DIGITS", "InventoryHeader", "ReceiptHeader", "is_receipt_of", "read_spoken", "spoken", "write_receipt"]

DIGITS = 12
_GROUP = 4
_BETWEEN = str.maketrans("", "", " \t-.")
# Damm's quasigroup of order 10: it finds every single wrong digit and every swap of neighbours.
_DAMM = (
    "0317598642",
    "7092154863",
    "4206871359",
    "1750983426",
    "6123045978",
    "3674209581",
    "5869720134",
    "8945362017",
    "9438617205",
    "2581436790",
)


def spoken(name: Digest) -> str:
    """Return what a plan is called aloud, `1234 5678 9012`: eleven digits of the hash of its name, one to check them.

    The number is sha256 of the text `sha256:…` modulo 10^11; the last digit is Damm's.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()) % 10 ** (DIGITS - 1)
    digits = f"{number:0{DIGITS - 1}d}"
    return _grouped(digits + str(_check(digits)))


def read_spoken(text: str) -> str:
    """Return digits as somebody wrote them down in the form that `spoken` gives.

    Raises ValueError where there are not twelve, or where one is wrong or two have changed places.
    """
    digits = text.translate(_BETWEEN)
    if not (digits.isascii() and digits.isdigit() and len(digits) == DIGITS):
        raise ValueError(f"{text!r} is no spoken receipt: that has {DIGITS} digits, such as {_grouped('123456789018')}")
    if _check(digits):
        raise ValueError(
            f"{_grouped(digits)} is no receipt: a digit is wrong, or two have changed places; have it read out again"
        )
    return _grouped(digits)


def write_receipt(path: Path, sealed: Sealed, site: str, now: float) -> None:
    """Write that all of the plan, what it brought and what it stands on, is at `site` since `now`. Raises OSError."""
    plan = sealed.plan
    header = ReceiptHeader(
        plan=str(sealed.name),
        series=plan.series,
        region=plan.region,
        site=site,
        created=plan.created,
        imported_at=now,
        spoken=spoken(sealed.name),
    )
    write_digests(path, header, sorted([*(blob.digest for blob in plan.blobs), *(one.digest for one in plan.requires)]))


def is_receipt_of(path: Path, name: Digest, site: str) -> bool:
    """Tell whether a whole receipt of `site` for this plan lies there, and not that of a bundle before it."""
    try:
        file = DigestFile.open(path)
    except (BundleError, OSError):
        return False
    try:
        return isinstance(file.header, ReceiptHeader) and (file.header.plan, file.header.site) == (name, site)
    finally:
        file.close()


def _grouped(digits: str) -> str:
    return " ".join(digits[at : at + _GROUP] for at in range(0, len(digits), _GROUP))


def _check(digits: str) -> int:
    """Return the digit to be added; 0 where the last one is that."""
    interim = 0
    for digit in digits:
        interim = int(_DAMM[interim][int(digit)])
    return interim
