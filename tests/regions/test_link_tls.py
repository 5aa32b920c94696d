"""Regions over https, on the loop that a mirror runs on: whose certificates are believed, who is let in by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from entrepot.config import TlsConfig
from entrepot.loops import loop_factory
from entrepot.tls import listening_tls
from proxy.oci.errors import Unavailable
from proxy.regions.credentials import LinkFiles
from proxy.regions.grants import Grant, Grants, GrantTerms
from tests.regions.lab import HUB, LIBRARY, SMALL, TOKEN, Region, a_region, an_asker, grants_in, token_file


def on_the_real_loop(scenario: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(scenario)


def write(folder: Path, leaf: trustme.LeafCert) -> LinkFiles:
    """Write a certificate and its key to `folder`, beside what vouches for the other side."""
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    return LinkFiles(ca=folder.parent / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")


@asynccontextmanager
async def listening(folder: Path, authority: trustme.CA, grants: Grants, *, client_ca: bool) -> AsyncIterator[Region]:
    server = write(folder / "server", authority.issue_cert("127.0.0.1"))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    assert server.cert is not None
    assert server.key is not None
    config = TlsConfig(cert=server.cert, key=server.key, client_ca=folder / "ca.pem" if client_ca else None)
    async with listening_tls(config) as tls, a_region(grants, tls=tls) as region:
        yield region


async def answers(region: Region, files: LinkFiles) -> str:
    """Return why a region does not answer; empty where it does."""
    digest = region.cache.store(SMALL)
    async with an_asker(region.url, files) as asker:
        try:
            stream = await asker.client.source(False).open_blob(HUB, digest)
        except Unavailable as error:
            return error.message
        assert b"".join([chunk async for chunk in stream]) == SMALL
        return ""


def test_a_private_authority_is_believed_where_it_is_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path, trustme.CA(), await grants_in(tmp_path), client_ca=False) as region:
            token = token_file(tmp_path, TOKEN)
            assert await answers(region, LinkFiles(token, tmp_path / "ca.pem")) == ""
            problem = await answers(region, LinkFiles(token))
            assert "TLS with region us-east fails" in problem
            assert "ca_file" in problem

    on_the_real_loop(scenario())


@pytest.mark.parametrize("by", ["common_name", "alternative"])
def test_a_certificate_of_a_grant_s_name_lets_in_and_no_other_does(tmp_path: Path, by: str) -> None:
    async def scenario() -> None:
        authority = trustme.CA()
        terms = GrantTerms(Grant("eu-west", LIBRARY), certificate="eu.example")
        async with listening(tmp_path, authority, await Grants.open([terms]), client_ca=True) as region:
            if by == "common_name":
                ours = authority.issue_cert("127.0.0.1", common_name="eu.example")
            else:
                ours = authority.issue_cert("eu.example")
            assert await answers(region, write(tmp_path / "ours", ours)) == ""
            assert "401" in await answers(region, write(tmp_path / "theirs", authority.issue_cert("us.example")))
            assert await answers(region, LinkFiles(token_file(tmp_path, TOKEN), tmp_path / "ca.pem")) != ""

    on_the_real_loop(scenario())


@pytest.mark.parametrize("first", ["of another name", "of another authority"])
def test_a_certificate_that_is_refused_is_read_again(tmp_path: Path, first: str) -> None:
    async def scenario() -> None:
        authority = trustme.CA()
        terms = GrantTerms(Grant("eu-west", LIBRARY), certificate="eu.example")
        grants = await Grants.open([terms])
        async with listening(tmp_path, authority, grants, client_ca=True) as region:
            issuer = authority if first == "of another name" else trustme.CA()
            files = write(tmp_path / "ours", issuer.issue_cert("us.example"))
            async with an_asker(region.url, files) as asker:
                with pytest.raises(Unavailable):
                    await asker.client.ping()
                write(tmp_path / "ours", authority.issue_cert("eu.example"))
                await asker.client.ping()
                assert asker.client.available

    on_the_real_loop(scenario())
