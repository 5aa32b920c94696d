"""Receipts: the digits that are read out tell of every slip, and the file tells what is at the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, strategies as st

from proxy.oci.digest import Digest
from sync.bundle.digestfile import DigestFile
from sync.bundle.plan import FORMAT, Blob, Cut, Plan, Required, Sealed, write_plan
from sync.bundle.receipts import ReceiptHeader, read_spoken, spoken, write_receipt

NAMES = st.binary(max_size=8).map(Digest.of)


@given(NAMES, st.sampled_from(["", " ", "-", ".", "  "]))
def test_digits_are_read_however_they_are_written(name: Digest, between: str) -> None:
    said = spoken(name)
    assert read_spoken(between.join(said.replace(" ", ""))) == said
    assert [len(group) for group in said.split(" ")] == [4, 4, 4]


@given(NAMES, st.integers(0, 11), st.integers(1, 9))
def test_every_single_wrong_digit_is_found(name: Digest, at: int, off: int) -> None:
    digits = spoken(name).replace(" ", "")
    wrong = digits[:at] + str((int(digits[at]) + off) % 10) + digits[at + 1 :]
    with pytest.raises(ValueError, match="a digit is wrong"):
        read_spoken(wrong)


@given(NAMES, st.integers(0, 10))
def test_every_swap_of_neighbours_is_found(name: Digest, at: int) -> None:
    digits = spoken(name).replace(" ", "")
    assume(digits[at] != digits[at + 1])
    with pytest.raises(ValueError, match="changed places"):
        read_spoken(digits[:at] + digits[at + 1] + digits[at] + digits[at + 2 :])


@pytest.mark.parametrize("text", ["", "1234", "1234 5678 90123", "a234 5678 9012", "\u0661234 5678 9018"])
def test_what_has_not_twelve_digits_is_told_so(text: str) -> None:
    with pytest.raises(ValueError, match="12 digits, such as 1234 5678 9018"):
        read_spoken(text)
    assert read_spoken("123456789018") == "1234 5678 9018"


def test_the_digits_are_these() -> None:
    # docs/bundle-format.md gives them: sites of different versions speak of the same bundle.
    assert spoken(Digest.of(b"a plan")) == "5230 4814 3093"


def test_a_receipt_lists_what_the_bundle_brought_and_what_it_stood_on(tmp_path: Path) -> None:
    brought, needed = str(Digest.of(b"brought")), str(Digest.of(b"needed", "sha512"))
    plan = Plan(
        format=FORMAT,
        series="weekly",
        region="berlin",
        created=7,
        repositories=("docker.io/library/alpine",),
        images=(),
        blobs=(Blob(brought, 7, 0),),
        documents=(),
        volumes=(Cut(0, 0),),
        requires=(Required(needed, 6, 0),),
    )
    sealed = Sealed.of(plan, write_plan(plan))
    path = tmp_path / f"{sealed.name.hex}.receipt"
    write_receipt(path, sealed, "ship", 9.5)
    receipt = DigestFile.open(path)
    assert receipt.kind == "receipt"
    assert receipt.header == ReceiptHeader(str(sealed.name), "weekly", "berlin", "ship", 7, 9.5, spoken(sealed.name))
    assert list(receipt) == [brought, needed]
