"""Who asks, behind trusted proxies or not, and how much one client may have in progress (P45)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from metrics.events import RequestFinished
from proxy.clients import Client, Clients, Network, behind, forwarded, parse_address
from tests.cache.lab import HUB, laboratory
from tests.support.contents import blob
from tests.support.fake_upstream import FakeUpstream

REPO = "library/alpine"
TRUSTED: Sequence[Network] = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
hops = st.one_of(addresses, st.text(max_size=20))


def of(peer: str, *headers: tuple[str, str]) -> Client:
    return Clients(TRUSTED).of(peer, CIMultiDictProxy(CIMultiDict(headers)))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:DB8:0::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_is_read_in_every_way_that_it_is_written(text: str, address: str) -> None:  # P45
    assert str(parse_address(text)) == address


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "192.0.2", "192.0.2.256", "1.2.3.4:", "[::1", "a\r\nb"])
def test_what_is_no_address_is_none(text: str) -> None:  # P42, P45
    assert parse_address(text) is None


def test_a_peer_that_is_no_proxy_is_the_client_whatever_it_says() -> None:  # P45
    assert of("192.0.2.9", ("X-Forwarded-For", "192.0.2.1")) == ("192.0.2.9", True)
    assert of("::ffff:192.0.2.9", ("Forwarded", "for=192.0.2.1")) == ("192.0.2.9", True)


def test_behind_a_proxy_the_right_most_address_that_is_none_counts() -> None:  # P45
    assert of("10.0.0.1", ("X-Forwarded-For", "6.6.6.6, 192.0.2.1, 10.0.0.2")) == ("192.0.2.1", True)
    lines = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1,10.0.0.2")]
    assert of("10.0.0.1", *lines) == ("192.0.2.1", True)
    assert of("::ffff:10.0.0.1", ("Forwarded", 'for=6.6.6.6, For="[2001:db8::1]:47";proto=http')) == (
        "2001:db8::1",
        True,
    )


def test_forwarded_counts_only_without_the_other_header() -> None:  # P45
    both = [("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.2")]
    assert of("10.0.0.1", *both).address == "192.0.2.1"


def test_a_proxy_that_names_nobody_is_not_limited() -> None:  # P45
    assert of("10.0.0.1") == ("10.0.0.1", False)
    assert of("10.0.0.1", ("Forwarded", "for=6.6.6.6, proto=https")) == ("10.0.0.1", False)


@pytest.mark.parametrize(
    ("chain", "proxy"), [("unknown", "10.0.0.1"), ("6.6.6.6, _x, 10.0.0.2", "10.0.0.2"), ('"', "10.0.0.1")]
)
def test_clients_that_a_proxy_names_without_an_address_are_one(chain: str, proxy: str) -> None:  # P45
    assert of("10.0.0.1", ("X-Forwarded-For", chain)) == (proxy, True)


def test_a_client_among_the_proxies_is_a_client() -> None:  # P45
    assert of("10.0.0.1", ("X-Forwarded-For", "10.9.9.9, 10.0.0.2")) == ("10.9.9.9", True)


def test_quoted_elements_are_not_torn_apart() -> None:  # RFC 7239 §4
    assert forwarded(['by="a,b;for=1.1.1.1";for="_x\\"y", for=2.2.2.2;host=z', "for=[::1]"]) == [
        '_x"y', "2.2.2.2", "[::1]"
    ]  # fmt: skip


@given(st.lists(hops, max_size=50), addresses)
def test_nobody_can_pose_as_somebody_else_by_writing_in_front(forged: list[str], true: str) -> None:  # P45
    honest = behind("10.0.0.1", [true], TRUSTED)
    told = behind("10.0.0.1", [*forged, true], TRUSTED)
    trusted = any(ip_address(true) in network for network in TRUSTED)
    assert told == honest or trusted


@given(st.lists(hops, max_size=40), st.text(), st.text(), st.text())
def test_anything_in_the_headers_gives_an_address(chain: list[str], xff: str, rest: str, peer: str) -> None:
    headers = CIMultiDict([("X-Forwarded-For", xff), ("X-Forwarded-For", ",".join(chain)), ("Forwarded", rest)])
    client = Clients(TRUSTED).of("10.0.0.1", CIMultiDictProxy(headers))
    assert ip_address(client.address)
    assert Clients(TRUSTED).of(peer, CIMultiDictProxy(headers)).address is not None


def test_the_bound_counts_what_is_in_progress_and_forgets_who_is_gone() -> None:  # P45
    clients = Clients((), limit=2)
    one, other = Client("192.0.2.1", True), Client("192.0.2.2", True)
    assert [clients.enter(one), clients.enter(one), clients.enter(one), clients.enter(other)] == [
        True, True, False, True
    ]  # fmt: skip
    clients.leave(one)
    assert clients.enter(one)
    proxy = Client("10.0.0.1", False)
    assert all(clients.enter(proxy) for _ in range(10))
    for client in (one, one, other, proxy):
        clients.leave(client)
    assert not clients._in_progress


async def test_one_client_too_many_is_told_to_come_again(tmp_path: Path) -> None:  # P16, P45
    clients = Clients((ip_network("127.0.0.0/8"),), limit=2)
    async with FakeUpstream() as upstream, laboratory(tmp_path / "d", {HUB: [upstream]}, clients=clients) as lab:
        digest = upstream.add_blob(REPO, blob(3 << 20))
        upstream.stall_at = 1 << 20
        greedy = {"X-Forwarded-For": "192.0.2.1"}
        async with AsyncExitStack() as pulls:
            for _ in range(2):
                await pulls.enter_async_context(lab.http.get(lab.blob_url(digest), headers=greedy))
            status, headers, body = await lab.get(f"{lab.url}/v2/", greedy)
            assert (status, headers["Retry-After"]) == (429, "1")
            assert b"TOOMANYREQUESTS" in body
            assert headers["X-Request-Id"] == lab.of(RequestFinished)[-1].request_id
            assert (await lab.get(f"{lab.url}/v2/", greedy, method="HEAD"))[2] == b""
            for others in ({"X-Forwarded-For": "192.0.2.2"}, {}):
                assert (await lab.get(f"{lab.url}/v2/", others))[0] == 200
        assert (await lab.get(f"{lab.url}/v2/", {"X-Forwarded-For": "192.0.2.2"}))[0] == 200
        await lab.until(lambda: sum(event.status != 429 for event in lab.of(RequestFinished)) == 5)
        assert (await lab.get(f"{lab.url}/v2/", greedy))[0] == 200
        assert {event.client for event in lab.of(RequestFinished)} == {"192.0.2.1", "192.0.2.2", "127.0.0.1"}
