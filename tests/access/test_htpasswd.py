"""htpasswd: bcrypt only, never on the loop, never per request, and no guessing (DESIGN, outside contract)."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from proxy.access import files, htpasswd
from proxy.access.admission import Visitor
from proxy.access.files import AccessFileError, WatchedFile
from proxy.access.htpasswd import Htpasswd, parse_htpasswd
from proxy.cache.once import Background
from proxy.oci.errors import TooManyRequests, Unauthorized, Unavailable
from proxy.oci.requests import Ping
from proxy.upstream.callers import Identity
from tests.access.support import basic

PASSWORD = "correct horse: battery"


def line(user: str, password: str) -> str:
    return f"{user}:{bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()}\n"


def rewrite(path: Path, content: str, stamp: int) -> None:
    """Replace the file's content, with a time of change of its own."""
    path.write_text(content)
    os.utime(path, ns=(stamp, stamp))


def visitor(user: str, password: str, address: str = "192.0.2.1") -> Visitor:
    return Visitor(basic(user, password), address)


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("# staff\n\n" + line("ann", PASSWORD))
    return path


@pytest.fixture
async def access(passwords: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Htpasswd]:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    async with Background() as background:
        with ThreadPoolExecutor(2) as executor:
            yield Htpasswd(await WatchedFile.open(passwords, parse_htpasswd), background, executor)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every use of bcrypt, by user."""
    seen: list[str] = []
    real = htpasswd._matches

    def counted(users: dict[str, bytes], user: str, password: str) -> bool:
        seen.append(user)
        return real(users, user, password)

    monkeypatch.setattr(htpasswd, "_matches", counted)
    return seen


async def test_the_right_password_is_admitted_and_any_other_challenged(access: Htpasswd) -> None:
    assert await access.admit(visitor("ann", PASSWORD), Ping()) is None
    for wrong in (visitor("ann", "x"), visitor("bob", PASSWORD), Visitor(None, "a"), Visitor("Basic %%%", "a")):
        with pytest.raises(Unauthorized) as told:
            await access.admit(wrong, Ping())
        assert told.value.challenge == 'Basic realm="entrepot"'  # P32: our own
        assert PASSWORD not in str(told.value)


async def test_bcrypt_runs_once_for_many_requests_at_once_and_afterwards(access: Htpasswd, checks: list[str]) -> None:
    await asyncio.gather(*(access.admit(visitor("ann", PASSWORD), Ping()) for _ in range(50)))
    await access.admit(visitor("ann", PASSWORD), Ping())
    assert checks == ["ann"]


async def test_an_unknown_user_is_compared_too(access: Htpasswd, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(password: bytes, hashed: bytes) -> bool:
        compared.append(hashed)
        return True

    monkeypatch.setattr(bcrypt, "checkpw", compare)
    with pytest.raises(Unauthorized):
        await access.admit(visitor("nobody", PASSWORD), Ping())
    assert len(compared) == 1


async def test_guessing_ends_after_ten_wrong_passwords_but_not_for_those_who_are_in(
    access: Htpasswd, checks: list[str]
) -> None:
    await access.admit(visitor("ann", PASSWORD), Ping())
    answers = await asyncio.gather(
        *(access.admit(visitor("ann", f"guess {n}"), Ping()) for n in range(30)), return_exceptions=True
    )
    assert sum(isinstance(answer, TooManyRequests) for answer in answers) >= 18
    assert len(checks) <= 13  # of 30 guesses: ten, and the one beside each turn
    with pytest.raises(TooManyRequests) as told:
        await access.admit(visitor("ann", "another"), Ping())
    assert told.value.retry_after is not None
    assert 1 <= told.value.retry_after <= 60  # P16
    await access.admit(visitor("ann", PASSWORD), Ping())
    with pytest.raises(Unauthorized):
        await access.admit(visitor("ann", "another", "192.0.2.2"), Ping())


async def test_logins_beyond_a_bound_are_sent_away_and_not_queued(
    access: Htpasswd, monkeypatch: pytest.MonkeyPatch
) -> None:  # P45
    go_on = threading.Event()
    monkeypatch.setattr(htpasswd, "_matches", lambda *given: go_on.wait(10) and False)
    asking = [
        asyncio.create_task(access.admit(visitor("ann", f"guess {n}", f"192.0.2.{n}"), Ping())) for n in range(100)
    ]
    try:
        first = [await done for done in itertools.islice(asyncio.as_completed(map(told, asking)), 100 - 64 - 2)]
    finally:
        go_on.set()
    assert {type(error) for error in first} == {Unavailable}
    assert all(isinstance(error, Unavailable) and error.retry_after == 1 for error in first)
    everybody = await asyncio.gather(*map(told, asking))
    assert sum(isinstance(error, Unauthorized) for error in everybody) == 64 + 2


async def told(asking: asyncio.Task[Identity | None]) -> BaseException | None:
    """Return what was raised."""
    await asyncio.wait([asking])
    return asking.exception()


async def test_an_ipv6_network_is_one_guesser(access: Htpasswd) -> None:
    for number in range(10):
        with pytest.raises(Unauthorized):
            await access.admit(visitor("ann", f"guess {number}", f"2001:db8:1:2::{number}"), Ping())
    with pytest.raises(TooManyRequests):
        await access.admit(visitor("ann", "guess", "2001:db8:1:2:ffff::1"), Ping())
    with pytest.raises(Unauthorized):
        await access.admit(visitor("ann", "guess", "2001:db8:1:3::1"), Ping())


async def test_a_changed_file_counts_at_once_and_a_broken_one_not(
    access: Htpasswd, passwords: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await access.admit(visitor("ann", PASSWORD), Ping())
    rewrite(passwords, line("bob", "new"), 1)
    with pytest.raises(Unauthorized):
        await access.admit(visitor("ann", PASSWORD), Ping())
    await access.admit(visitor("bob", "new"), Ping())
    rewrite(passwords, "ann:{SHA}abc\n", 2)
    await access.admit(visitor("bob", "new"), Ping())
    os.unlink(passwords)
    await access.admit(visitor("bob", "new"), Ping())
    assert "the old ones stay" in caplog.text


async def test_a_file_that_changed_and_looks_the_same_counts_too(access: Htpasswd, passwords: Path) -> None:
    rewrite(passwords, line("ann", PASSWORD), 1)
    await access.admit(visitor("ann", PASSWORD), Ping())
    rewrite(passwords, line("bob", PASSWORD), 1)  # in place, as long, and with the time that it had
    with pytest.raises(Unauthorized):
        await access.admit(visitor("ann", PASSWORD), Ping())


async def test_a_file_system_that_hangs_keeps_one_thread_and_no_request(
    access: Htpasswd, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hang, looks = files._signature, threading.Event(), itertools.count()

    def hanging(path: Path) -> files.Signature:
        next(looks)
        hang.wait(60)
        return real(path)

    monkeypatch.setattr(files, "PATIENT_SECONDS", 0.05)
    monkeypatch.setattr(files, "_signature", hanging)
    try:
        async with asyncio.timeout(30):
            for _ in range(3):
                await asyncio.gather(*(access.admit(visitor("ann", PASSWORD), Ping()) for _ in range(10)))
        assert next(looks) == 1
    finally:
        hang.set()


async def test_passwords_are_cut_where_htpasswd_cuts_them(access: Htpasswd, passwords: Path) -> None:
    long = "é" * 60
    rewrite(passwords, line("ann", long), 3)
    await access.admit(visitor("ann", long), Ping())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ann:$apr1$abc$def\n", "line 1 .'ann'. is not hashed by bcrypt"),
        (line("ann", "x") + "bob:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n", "line 2 .'bob'. is not hashed by bcrypt"),
        ("# no\nann\n", "line 2 is not user:hash"),
        ("ann:$2y$31$" + "a" * 53, "line 1 .'ann'. has the bcrypt cost 31"),
        ("ann:$2y$03$" + "a" * 53, "cost 03: write it with 4 to 17"),
    ],
)
async def test_other_hashes_are_refused_at_start_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "users"
    path.write_text(content)
    with pytest.raises(AccessFileError, match=message) as told:
        await WatchedFile.open(path, parse_htpasswd)
    assert "5en6G6" not in str(told.value)


async def test_a_missing_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(AccessFileError, match="cannot be read"):
        await WatchedFile.open(tmp_path / "none", parse_htpasswd)


async def test_bcrypt_leaves_the_loop_free(passwords: Path) -> None:
    rewrite(passwords, f"ann:{bcrypt.hashpw(b'x', bcrypt.gensalt(11)).decode()}\n", 1)
    loop = asyncio.get_running_loop()
    longest, before = 0.0, loop.time()
    async with Background() as background:
        with ThreadPoolExecutor(2) as executor:
            access = Htpasswd(await WatchedFile.open(passwords, parse_htpasswd), background, executor)
            admitting = asyncio.create_task(access.admit(visitor("ann", "x"), Ping()))
            turns = 0
            while not admitting.done():
                await asyncio.sleep(0)
                turns += 1
                longest, before = max(longest, loop.time() - before), loop.time()
    assert turns > 100
    assert await admitting is None
