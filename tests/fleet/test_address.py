"""Where Redis is, as its URL says."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from entrepot.config.values import redis_url
from proxy.fleet.address import SCHEMES, RedisAddress, parse

HOSTS = st.lists(
    st.tuples(st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True), st.integers(1, 65535)),
    min_size=1,
    max_size=3,
)


def test_a_single_server_is_read_with_its_defaults() -> None:
    assert parse("redis://redis.example") == RedisAddress("single", (("redis.example", 6379),))
    assert parse("rediss://:s%2Fcret@redis.example:7000/3") == RedisAddress(
        "single", (("redis.example", 7000),), database=3, password="s/cret", tls=True
    )
    assert parse("redis://[::1]:7000").hosts == (("::1", 7000),)


def test_sentinels_have_a_name_for_the_primary() -> None:
    assert parse("redis+sentinel://fleet:pw@one,two:26380/main/2") == RedisAddress(
        "sentinel", (("one", 26379), ("two", 26380)), 2, "main", "fleet", "pw"
    )


def test_a_cluster_has_one_database() -> None:
    assert parse("rediss+cluster://one,two:7001/").hosts == (("one", 6379), ("two", 7001))
    with pytest.raises(ValueError, match="one database"):
        parse("redis+cluster://one/1")


@given(st.sampled_from(sorted(SCHEMES)), HOSTS)
def test_all_hosts_are_kept_in_their_order(scheme: str, hosts: list[tuple[str, int]]) -> None:
    hosts = hosts if "+" in scheme else hosts[:1]
    path = "/main" if "sentinel" in scheme else ""
    address = parse(f"{scheme}://{','.join(f'{host}:{port}' for host, port in hosts)}{path}")
    assert (address.kind, address.tls) == SCHEMES[scheme]
    assert list(address.hosts) == hosts


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@redis.example",
        "redis://user:hunter2@",
        "redis://user:hunter2@redis.example/database",
        "redis://user:hunter2@redis.example/0?db=1",
        "redis://user:hunter2@one,two",
        "redis://user:hunter2@redis.example:0",
        "redis://user:hunter2@redis.example:99999",
        "redis://user:hunter2/x@redis.example",
        "redis://user:hunter2@x@redis.example",
        "redis+sentinel://user:hunter2@one,two",
        "redis+cluster://user:hunter2@one,two/3",
    ],
)
def test_a_bad_url_is_refused_with_a_reason_that_shows_no_password(url: str) -> None:
    for read in (parse, redis_url):
        with pytest.raises(ValueError, match=r"it (?:does|has|names|lacks)|a host|what follows") as refused:
            read(url)
        assert "hunter" not in str(refused.value)


def test_what_people_see_of_an_address_has_no_password() -> None:
    address = parse("redis+sentinel://fleet:hunter2@one,two/main")
    assert str(address) == "main of the Sentinels one:26379, two:26379"
    assert "hunter2" not in repr(address)
