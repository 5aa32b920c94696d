"""Nodes that ask one another over https: whose certificates are believed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from entrepot.config import TlsConfig
from entrepot.tls import TlsError, listening_tls, neighbour_tls
from tests.fleet.nodes import a_node, an_asker


def config_in(folder: Path, authority: trustme.CA, *, client_ca: bool = False) -> TlsConfig:
    """Write a certificate for this machine alone, without its authority's."""
    folder.mkdir()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return TlsConfig(
        cert=folder / "cert.pem", key=folder / "key.pem", client_ca=folder / "ca.pem" if client_ca else None
    )


async def alive(listening: TlsConfig, asking: ssl.SSLContext | None) -> bool:
    async with listening_tls(listening) as tls, a_node(tls=tls) as node, an_asker(tls=asking) as asker:
        return await asker.neighbours.alive(node.url)


async def test_nodes_that_share_a_certificate_believe_one_another(tmp_path: Path) -> None:
    ours, others = config_in(tmp_path / "a", trustme.CA()), config_in(tmp_path / "b", trustme.CA())
    async with neighbour_tls(ours) as context:
        assert await alive(ours, context)
        assert not await alive(others, context)
    assert not await alive(ours, None)


async def test_with_client_ca_a_node_shows_its_own_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    guarded = config_in(tmp_path / "a", authority, client_ca=True)
    async with neighbour_tls(guarded) as context:
        assert await alive(guarded, context)
    async with neighbour_tls(TlsConfig(cert=guarded.cert, key=guarded.key)) as context:
        assert not await alive(guarded, context)


async def test_a_new_certificate_is_believed_without_a_restart(tmp_path: Path) -> None:
    old, new = config_in(tmp_path / "a", trustme.CA()), config_in(tmp_path / "b", trustme.CA())
    async with neighbour_tls(old, seconds=0.01) as context:
        assert not await alive(new, context)
        old.cert.write_bytes(new.cert.read_bytes())
        old.key.write_bytes(new.key.read_bytes())
        async with asyncio.timeout(30):
            while not await alive(new, context):
                pass


async def test_what_is_no_certificate_ends_the_start(tmp_path: Path) -> None:
    config = config_in(tmp_path / "a", trustme.CA())
    config.cert.write_text("no certificate")
    with pytest.raises(TlsError, match=r"cert\.pem"):
        async with neighbour_tls(config):
            pass
