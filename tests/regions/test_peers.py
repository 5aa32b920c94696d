"""Which regions are asked, in which order, and where a tag's home is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import Unavailable
from proxy.oci.names import Tag
from proxy.regions import peers
from proxy.regions.credentials import LinkFiles
from proxy.regions.peers import Peers
from proxy.store.records import TagRecord
from tests.fleet.nodes import TYPE
from tests.regions.lab import (
    HUB,
    LIBRARY,
    PRIVATE,
    SMALL,
    TOKEN,
    Asker,
    Region,
    a_record,
    a_region,
    an_asker,
    grants_in,
    token_file,
)

TAG = Tag("3.20")
OLD, NEW = b"old", b"new"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Region]:
    async with a_region(await grants_in(tmp_path)) as region:
        yield region


@pytest.fixture
async def asker(home: Region, tmp_path: Path) -> AsyncIterator[Asker]:
    async with an_asker(home.url, LinkFiles(token_file(tmp_path, TOKEN)), scope=LIBRARY) as one:
        await one.client.ping()
        yield one


def known(content: bytes = OLD, version: int = 5, origin: str = "us-east") -> TagRecord:
    return TagRecord(Descriptor(TYPE, Digest.of(content), len(content)), version, origin, 1.0, 1.0)


async def test_a_tag_is_asked_for_at_its_home(home: Region, asker: Asker) -> None:
    home.cache.records[TAG] = (a_record(TAG, NEW, 9), 3.0)
    said = await Peers([asker.client], "eu-west").tag(HUB, TAG, known(), math.inf)
    assert said is not None
    assert (said.record.digest, said.age, said.region) == (Digest.of(NEW), 3.0, "us-east")
    assert home.cache.wanted_age == math.inf
    assert await Peers([asker.client], "eu-west").tag(HUB, TAG, known(), 0.5) is not None
    assert home.cache.wanted_age == 0


@pytest.mark.parametrize(
    "record",
    [None, known(origin=""), known(origin="eu-west"), known(origin="ap-south")],
    ids=["new", "", "ours", "far"],
)
async def test_nobody_is_asked_where_its_home_is_here_or_no_peer(
    home: Region, asker: Asker, record: TagRecord | None
) -> None:
    home.cache.records[TAG] = (a_record(TAG, NEW, 9), 3.0)
    assert await Peers([asker.client], "eu-west").tag(HUB, TAG, record, math.inf) is None
    assert not home.cache.asked


@pytest.mark.parametrize(("content", "version", "believed"), [(NEW, 4, False), (NEW, 5, True), (OLD, 1, True)])
async def test_a_home_that_knows_only_what_is_older_is_not_believed(
    home: Region, asker: Asker, content: bytes, version: int, believed: bool
) -> None:
    home.cache.records[TAG] = (a_record(TAG, content, version), 3.0)
    said = await Peers([asker.client], "eu-west").tag(HUB, TAG, known(), math.inf)
    assert (said is not None) == believed


async def test_a_home_that_does_not_know_or_does_not_answer_says_nothing(
    home: Region, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HOME_SECONDS", 0.1)
    regions = Peers([asker.client], "eu-west")
    assert await regions.tag(HUB, TAG, known(), math.inf) is None
    home.cache.error = Unavailable("its upstream does not answer")
    assert await regions.tag(HUB, TAG, known(), math.inf) is None
    home.cache.gate = asyncio.Event()
    assert await regions.tag(HUB, TAG, known(), math.inf) is None
    assert len(home.cache.asked) == 3


async def test_only_those_are_given_who_may_have_it_and_answer(home: Region, asker: Asker, tmp_path: Path) -> None:
    wrong = LinkFiles(token_file(tmp_path, "not-the-token", name="wrong"))
    async with an_asker(home.url, wrong, name="ap-south") as refused:
        with pytest.raises(Unavailable):
            await refused.client.ping()
        regions = Peers([refused.client, asker.client], "eu-west")
        for start in (False, True):
            assert [source.name for source in regions.sources(HUB, start=start)] == ["us-east"]
            assert not regions.sources(PRIVATE, start=start)
        digest = home.cache.store(SMALL)
        (source,) = regions.sources(HUB, start=False)
        await (await source.open_blob(HUB, digest)).aclose()
        assert source.kind == "region"
        assert home.cache.asked == [(HUB, digest, True)]


async def test_the_nearest_comes_first_and_equals_keep_their_order(home: Region, tmp_path: Path) -> None:
    files = LinkFiles(token_file(tmp_path, TOKEN))
    async with (
        an_asker(home.url, files, name="a") as a,
        an_asker(home.url, files, name="b") as b,
        an_asker(home.url, files, name="c") as c,
        an_asker(home.url, files, name="d") as d,
    ):
        for one in (a, b, c, d):
            await one.client.ping()
        a.client.rtt, b.client.rtt, c.client.rtt, d.client.rtt = 0.2, 0.0211, None, 0.0209
        regions = Peers([one.client for one in (a, b, c, d)], "eu-west")
        assert [source.name for source in regions.sources(HUB, start=True)] == ["b", "d", "a", "c"]
