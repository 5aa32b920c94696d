"""Files of digests: what is written is found again, and nothing damaged is believed."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from proxy.oci.digest import Digest
from sync.bundle.digestfile import DigestFile, InventoryHeader, kind_of, write_digests
from sync.bundle.errors import BundleError

ABOUT = InventoryHeader("berlin", 1.5)
SHA256 = st.binary(min_size=32, max_size=32).map(lambda raw: f"sha256:{raw.hex()}")
SHA512 = st.binary(min_size=64, max_size=64).map(lambda raw: f"sha512:{raw.hex()}")


def of(number: int, algorithm: str = "sha256") -> Digest:
    return Digest.of(b"%d" % number, algorithm)


@settings(max_examples=25)
@given(st.sets(SHA256 | SHA512, max_size=40), SHA256 | SHA512)
def test_just_what_was_written_is_found_and_in_order(digests: set[str], other: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.inventory"
        assert write_digests(path, ABOUT, sorted(digests)) == len(digests)
        file = DigestFile.open(path)
        assert file.header == ABOUT
        assert list(file) == sorted(digests)
        assert len(file) == len(digests)
        assert all(digest in file for digest in digests)
        assert (other in file) == (other in digests)
        assert file.name == f"sha256:{hashlib.sha256(path.read_bytes()[:-32]).hexdigest()}"
        file.close()


def test_the_same_digests_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_digests(tmp_path / name, ABOUT, sorted(of(number) for number in range(9)))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert kind_of((tmp_path / "one").read_bytes()[:24]) == "inventory"


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "site.inventory"
    write_digests(path, ABOUT, sorted(of(number) for number in range(3)))
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(BundleError, match=r"site\.inventory"):
            DigestFile.open(path)


def test_a_file_that_was_cut_short_or_goes_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.inventory"
    write_digests(path, ABOUT, sorted(of(number) for number in range(3)))
    whole = path.read_bytes()
    for body in [*(whole[:end] for end in range(0, len(whole), 7)), whole + b"\0"]:
        path.write_bytes(body)
        with pytest.raises(BundleError):
            DigestFile.open(path)


def test_digests_that_are_not_sorted_leave_no_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "site.inventory"
    write_digests(path, ABOUT, [of(1)])
    before = path.read_bytes()
    unsorted = sorted((of(number) for number in range(3)), reverse=True)
    with pytest.raises(ValueError, match="in order"):
        write_digests(path, ABOUT, unsorted)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_another_file_is_named_as_being_none(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8" * 100)
    with pytest.raises(BundleError, match="no inventory and no receipt"):
        DigestFile.open(path)
    assert kind_of(b"\xff\xd8") is None


def test_a_header_that_lies_about_its_numbers_is_refused(tmp_path: Path) -> None:
    # Its hash fits: whoever wrote it can make that.
    path = tmp_path / "site.inventory"
    for sha256, sha512 in ((2**62, 0), (-2, 1), (1, 0)):
        lines = b'entrepot-inventory/1\n{"digests":{"sha256":%d,"sha512":%d},' % (sha256, sha512)
        body = lines + b'"about":{"region":"x","created":0}}\n'
        path.write_bytes(body + hashlib.sha256(body).digest())
        with pytest.raises(BundleError):
            DigestFile.open(path)
