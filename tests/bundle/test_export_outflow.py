"""Files written past the page cache where that can be, and through it elsewhere: the bytes are the same."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from sync.bundle import outflow
from sync.bundle.outflow import Outflow, open_direct

BUFFER = 16 << 10
BODY = os.urandom(5 * BUFFER + 777)


def flow(path: Path, begin: int, marks: list[tuple[int, str]]) -> str:
    """Write BODY from `begin` on, in pieces of odd lengths."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    direct = open_direct(path)
    out = Outflow(
        file,
        direct,
        begin,
        hashlib.sha256(BODY[:begin]),
        2 * BUFFER,
        lambda offset, hash: marks.append((offset, hash)),
        lambda count: None,
    )
    try:
        for at in range(0, len(BODY), 5000):
            out.put(at, BODY[at : at + 5000])
        return out.finish()
    finally:
        out.close()
        os.close(file)
        if direct is not None:
            os.close(direct)


@pytest.mark.parametrize("begin", [0, 2 * BUFFER, 1000])
@pytest.mark.parametrize("refused", [False, True])
def test_a_file_is_the_same_written_past_the_page_cache_and_through_it(
    tmp_path: Path, begin: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outflow, "BUFFER", BUFFER)
    path, marks, direct = tmp_path / "file", list[tuple[int, str]](), 0
    path.write_bytes(BODY[:begin])
    pwrite = os.pwrite

    def counting(file: int, data: memoryview, at: int) -> int:
        nonlocal direct
        if int(_flags(file), 8) & os.O_DIRECT:
            if refused:
                raise OSError(errno.EINVAL, "this file system only says so now")
            direct += len(data)
        return pwrite(file, data, at)

    monkeypatch.setattr(os, "pwrite", counting)
    assert flow(path, begin, marks) == hashlib.sha256(BODY).hexdigest()
    assert path.read_bytes() == BODY
    assert marks == [(at, hashlib.sha256(BODY[:at]).hexdigest()) for at in range(begin, len(BODY), 2 * BUFFER)[1:]]
    whole_pages = begin % BUFFER == 0 and not refused and _may_be_direct(path)
    assert direct == ((len(BODY) - begin) // BUFFER * BUFFER if whole_pages else 0)


def _may_be_direct(path: Path) -> bool:
    file = open_direct(path)
    if file is not None:
        os.close(file)
    return file is not None


def _flags(file: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{file}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("flags"))


def test_a_disk_that_fails_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outflow, "BUFFER", BUFFER)

    def full(file: int, data: memoryview, at: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    marks: list[tuple[int, str]] = []
    with pytest.raises(OSError, match="full"):
        flow(tmp_path / "file", 0, marks)
    assert marks == []
