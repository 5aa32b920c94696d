"""Who is let in: by token, by certificate; and what files of tokens may hold."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import aiohttp
import pytest

from proxy.access import files
from proxy.access.files import AccessFileError
from proxy.access.verdicts import WRONG_ALLOWED
from proxy.regions.credentials import LinkFileError, read_tokens
from proxy.regions.grants import Grant, Grants, GrantTerms, names_in
from tests.regions.lab import EVERYTHING, TOKEN, a_region, grants_in, token_file

OTHER = "another-token-entirely-0815"


async def ask(url: str, token: str | None, target: str = "/sync/v1/other") -> tuple[int, str, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(url + target, headers=headers) as response:
        return response.status, response.headers.get("WWW-Authenticate", ""), await response.text()


def terms(folder: Path, name: str, *tokens: str) -> GrantTerms:
    return GrantTerms(Grant(name, EVERYTHING), token_file(folder, *tokens, name=name))


async def test_nobody_without_a_token_of_a_grant_learns_anything(tmp_path: Path) -> None:
    async with a_region(await grants_in(tmp_path)) as region:
        for token in (None, OTHER, TOKEN[:-1], TOKEN + "x", ""):
            status, challenge, text = await ask(region.url, token)
            assert (status, challenge) == (401, 'Bearer realm="entrepot"')
            assert '"code": "UNAUTHORIZED"' in text
        assert (await ask(region.url, TOKEN))[0] == 404
        assert not region.cache.asked


async def test_two_tokens_open_a_grant_while_they_are_rotated(tmp_path: Path) -> None:
    grants = await Grants.open([terms(tmp_path, "eu-west", "# of 2025", OTHER, TOKEN)])
    async with a_region(grants) as region:
        assert [(await ask(region.url, token))[0] for token in (TOKEN, OTHER)] == [404, 404]


async def test_a_token_file_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    async with a_region(await grants_in(tmp_path)) as region:
        assert (await ask(region.url, TOKEN))[0] == 404
        token_file(tmp_path, OTHER, name="granted")
        os.utime(tmp_path / "granted", (1, 1))
        assert (await ask(region.url, OTHER))[0] == 404
        assert (await ask(region.url, TOKEN))[0] == 401


async def test_wrong_tokens_are_counted_by_address_and_those_known_to_be_right_are_not_held_up(tmp_path: Path) -> None:
    grants = await Grants.open([terms(tmp_path, "eu-west", TOKEN, OTHER)])
    async with a_region(grants) as region:
        assert (await ask(region.url, TOKEN))[0] == 404
        for _ in range(WRONG_ALLOWED):
            assert (await ask(region.url, "guess"))[0] == 401
        assert (await ask(region.url, "guess"))[0] == 429
        assert (await ask(region.url, OTHER))[0] == 429  # whether a guess is right is not told
        assert (await ask(region.url, TOKEN))[0] == 404


async def test_wrong_tokens_behind_a_trusted_proxy_hold_up_nobody_else_behind_it(tmp_path: Path) -> None:
    grants = await Grants.open([terms(tmp_path, "eu-west", TOKEN)], lambda request: request.headers["X-Real"])
    async with a_region(grants) as region, aiohttp.ClientSession() as session:

        async def asked(token: str, address: str) -> int:
            headers = {"Authorization": f"Bearer {token}", "X-Real": address}
            async with session.get(region.url + "/sync/v1/other", headers=headers) as response:
                return response.status

        guesses = [await asked("guess", "192.0.2.1") for _ in range(WRONG_ALLOWED + 1)]
        assert guesses[-2:] == [401, 429]
        assert await asked(TOKEN, "192.0.2.2") == 404


async def test_a_token_in_two_grants_is_refused_with_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LinkFileError, match=r"one of grant one.*two of grant two") as refused:
        await Grants.open([terms(tmp_path, "one", TOKEN), terms(tmp_path, "two", OTHER, TOKEN)])
    assert TOKEN not in str(refused.value)
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.0)
    async with a_region(await Grants.open([terms(tmp_path, "one", TOKEN), terms(tmp_path, "two", OTHER)])) as region:
        assert (await ask(region.url, TOKEN))[0] == 404
        token_file(tmp_path, TOKEN, name="two")
        os.utime(tmp_path / "two", (1, 1))
        with caplog.at_level(logging.ERROR):
            assert [(await ask(region.url, TOKEN))[0] for _ in range(2)] == [401, 401]
    (record,) = (one for one in caplog.records if one.levelno == logging.ERROR)
    assert record.__dict__["grants"] == "one, two"


@pytest.mark.parametrize("content", ["", "# only a comment\n", "two words\n", "umläut\n"])
async def test_a_file_without_a_token_in_it_ends_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(AccessFileError, match="tokens"):
        await Grants.open([GrantTerms(Grant("one", EVERYTHING), tmp_path / "tokens")])


def test_tokens_stand_one_a_line_with_comments_between() -> None:
    assert read_tokens("# old\n a:b \n\n#x\nc\n") == ("a:b", "c")


def test_the_names_of_a_certificate_are_its_common_name_and_its_dns_names() -> None:
    certificate = {
        "subject": ((("organizationName", "o"),), (("commonName", "eu-west"),)),
        "subjectAltName": (("DNS", "eu.example"), ("IP Address", "127.0.0.1")),
    }
    assert names_in(certificate) == {"eu-west", "eu.example"}
