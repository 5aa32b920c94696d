"""What the doctor sees and says of other regions: each peer as it answers, and the files with tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entrepot.config import Config, GrantConfig, PeerConfig, UpstreamConfig
from entrepot.doctor.examination import examine
from entrepot.doctor.findings import Finding
from entrepot.doctor.judging_regions import judge_peer, judge_tokens
from entrepot.doctor.regions import PeerSeen, TokenFileSeen, look_at_peer, look_at_tokens
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.names import Tag
from proxy.region_endpoint import RegionHandler
from proxy.store.store import Store
from sync.regional_feed import RegionChanges
from sync.regional_records import CHANGES
from tests.regions.lab import HUB, LIBRARY, TOKEN, Region, a_region, grants_in, token_file

US = PeerConfig(name="us-east", url="https://us.mirror.example", token_file=Path("/t"))
SEEN = PeerSeen("us-east", US.url, region="us-east", skew=0.4, records=12)


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("changed", "level", "words", "remedy"),
    [
        ({}, "ok", "answers as region us-east, with 12 records for this one", ""),
        ({"records": None}, "ok", "answers as region us-east", ""),
        ({"failed": "refused", "failure": "refuses this one with 401"}, "problem", "with 401", "[[grant]]"),
        ({"failed": "silent", "failure": "cannot be reached"}, "problem", "cannot be reached", "firewall"),
        ({"failed": "files", "failure": "/t cannot be read"}, "problem", "/t cannot be read", "mend the file"),
        ({"failed": "unreadable", "failure": "speaks version 2"}, "problem", "version 2", "older of the two"),
        ({"region": "eu-west"}, "problem", "this one's own name", "`region` of its own"),
        ({"region": "us-west"}, "warning", "calls itself us-west", "name the [[peer]]"),
        ({"skew": 86400.0}, "problem", "1440 minutes ahead of this one", "not taken over until"),
        ({"skew": -400.0}, "problem", "7 minutes behind this one", "set both"),
        ({"skew": 290.0}, "ok", "answers", ""),
        ({"records": 0}, "warning", "tells of nothing in *", "`repositories`"),
    ],
)
def test_a_peer_is_judged(changed: dict[str, Any], level: str, words: str, remedy: str) -> None:
    finding = only(judge_peer(replace(SEEN, **changed), US, "eu-west"))
    assert (finding.check, finding.level) == ("peer us-east", level)
    assert words in finding.seen
    assert remedy in (finding.advice or "")


@pytest.mark.parametrize(
    ("url", "token", "warned"),
    [
        ("http://us.mirror.example", Path("/t"), True),
        ("http://127.0.0.1:5000", Path("/t"), False),
        ("http://us.mirror.example", None, False),
        ("https://us.mirror.example", Path("/t"), False),
    ],
)
def test_a_token_in_the_clear_is_warned_of(url: str, token: Path | None, warned: bool) -> None:
    peer = msgspec.structs.replace(US, url=url, token_file=token)
    finding = judge_peer(replace(SEEN, url=url), peer, "eu-west")[0]
    assert (finding.level == "warning") is warned
    assert ("in the clear" in finding.seen) is warned


def test_the_tokens_of_grants_are_told_apart(tmp_path: Path) -> None:
    first, second = token_file(tmp_path, TOKEN, name="a"), token_file(tmp_path, "another", TOKEN, name="b")
    for path in (first, second):
        path.chmod(0o640)
    grants = tuple(GrantConfig(name=path.name, repositories=("*",), token_file=path) for path in (first, second))
    finding = only(judge_tokens(look_at_tokens(config_of(tmp_path, grants=grants))))
    assert (finding.level, finding.check) == ("problem", "grants")
    assert "a token is that of grant a and grant b: it opens none of them" in finding.seen
    assert TOKEN not in str(finding)
    good = only(judge_tokens(look_at_tokens(config_of(tmp_path, grants=grants[:1]))))
    assert (good.level, good.seen) == ("ok", "1 token file can be read, each token is of one grant")


def test_a_token_file_that_everybody_reads_or_that_holds_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("# nothing yet\n")
    path.chmod(0o644)
    peer = msgspec.structs.replace(US, token_file=path)
    empty, open_to_all = judge_tokens(look_at_tokens(config_of(tmp_path, peers=(peer,))))
    assert (empty.level, open_to_all.level) == ("problem", "warning")
    assert "it holds no token" in empty.seen
    assert open_to_all.advice == f"chmod o= {path}"


def test_what_was_seen_of_a_token_does_not_show_it(tmp_path: Path) -> None:
    seen = TokenFileSeen("grant a", tmp_path, tokens=(b"hash",))
    assert "hash" not in repr(seen)


def config_of(folder: Path, peers: tuple[PeerConfig, ...] = (), grants: tuple[GrantConfig, ...] = ()) -> Config:
    upstreams = (UpstreamConfig(name="docker.io", url="http://127.0.0.1:1"),)
    return Config(data=folder / "data", region="eu-west", upstreams=upstreams, peers=peers, grants=grants)


@asynccontextmanager
async def a_region_with_a_tag(folder: Path) -> AsyncIterator[Region]:
    """Run the region us-east, which has docker.io/library/alpine:3 and grants eu-west the official images."""
    store = await Store.open(folder / "theirs")
    changes = RegionChanges(store.catalog)
    try:
        media_type = "application/vnd.oci.image.manifest.v1+json"
        await store.catalog.put_tag(HUB, Tag("3"), Descriptor(media_type, Digest.of(b"3"), 500), 1e9)
        more: Mapping[str, RegionHandler] = {CHANGES: changes}
        async with a_region(await grants_in(folder, LIBRARY), more=more) as region:
            yield region
    finally:
        await store.close()


async def test_a_real_region_tells_its_name_its_time_and_what_it_has_for_us(tmp_path: Path) -> None:
    async with a_region_with_a_tag(tmp_path) as region:
        peer = PeerConfig(name="us-east", url=region.url, token_file=token_file(tmp_path, TOKEN))
        seen = await look_at_peer(peer, "eu-west")
        assert (seen.failed, seen.failure, seen.region, seen.records) == ("", "", "us-east", 1)
        assert seen.skew is not None
        assert abs(seen.skew) < 60
        other = msgspec.structs.replace(peer, repositories=("docker.io/team/*",))
        assert (await look_at_peer(other, "eu-west")).records == 0


async def test_a_wrong_token_is_refused_and_not_shown(tmp_path: Path) -> None:
    async with a_region_with_a_tag(tmp_path) as region:
        peer = PeerConfig(name="us-east", url=region.url, token_file=token_file(tmp_path, "marker-wrong-4712"))
        seen = await look_at_peer(peer, "eu-west")
    assert seen.failed == "refused"
    assert "401" in seen.failure
    assert "marker" not in repr(seen)


async def test_who_grants_nothing_and_who_does_not_answer_are_told_apart(tmp_path: Path) -> None:
    path = token_file(tmp_path, TOKEN)
    async with a_region(None) as region:
        peer = PeerConfig(name="us-east", url=region.url, token_file=path)
        assert (await look_at_peer(peer, "eu-west")).failed == "refused"
    assert (await look_at_peer(peer, "eu-west")).failed == "silent"
    missing = msgspec.structs.replace(peer, token_file=tmp_path / "nowhere")
    assert (await look_at_peer(missing, "eu-west")).failed == "files"


async def test_the_examination_tells_of_peers_and_grants(tmp_path: Path) -> None:
    async with a_region_with_a_tag(tmp_path) as region:
        path = token_file(tmp_path, TOKEN)
        path.chmod(0o600)
        peers = (PeerConfig(name="us-east", url=region.url, token_file=path),)
        grants = (GrantConfig(name="us-east", repositories=("*",), token_file=path),)
        config = msgspec.structs.replace(config_of(tmp_path, peers, grants), offline=True)
        findings = {finding.check: finding for finding in await examine(config, tmp_path)}
    assert (findings["peer us-east"].level, findings["grants"].level) == ("ok", "ok")
