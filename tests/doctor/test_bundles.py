"""What the doctor says of bundles: imports that wait, bases that take much, a signature that nobody can give."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from entrepot.config import load
from entrepot.config.model import BundlesConfig
from entrepot.doctor.bundles import BundlesSeen, look_at_bundles
from entrepot.doctor.judging_bundles import judge_bundles
from proxy.store.store import Store
from sync.bundle.waiting import Waiting, waiting_imports
from tests.bundle.site import Site
from tests.bundle.writing import make_bundle
from tests.support.contents import blob, make_image

PLAIN = load(None, {}, {"data": "/nowhere"})
IMAGE = make_image([blob(90_000, seed=1)])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_an_import_that_waits_says_so_until_its_last_volume_and_its_base_is_then_what_is_kept(
    site: Site, tmp_path: Path
) -> None:
    first, second, *others = make_bundle(
        tmp_path, [("docker.io/library/alpine:3", IMAGE)], split=50_000, series="weekly"
    )
    imports = site.data / "bundles" / "imports"
    await site.take(second)
    (begun,) = waiting_imports(imports)
    rest = tuple(range(3, len(others) + 3))
    assert (begun.series, begun.region, begun.volumes) == ("weekly", "eu-west", 2 + len(rest))
    assert begun.missing == (1, *rest)
    await site.take(first)
    (later,) = look_at_bundles(site.data).waiting
    assert (later.missing, later.since) == (rest, begun.since)
    await site.take(*others)
    left = sorted(path.name for path in site.data.iterdir())
    seen = look_at_bundles(site.data)
    assert seen == BundlesSeen((("weekly", sum(map(len, (IMAGE.body, *IMAGE.blobs)))),), ())
    assert sorted(path.name for path in site.data.iterdir()) == left
    store = await Store.open(site.data)
    assert look_at_bundles(site.data) == seen
    await store.close()
    assert look_at_bundles(tmp_path / "nothing") == BundlesSeen()


def test_each_import_that_waits_is_told_with_what_it_waits_for() -> None:
    waits = Waiting("sha256:0", "weekly", "home", 4, (2, 4), 1_700_000_000.0)
    (finding,) = judge_bundles(BundlesSeen((), (waits,)), PLAIN, None)
    assert finding.level == "warning"
    assert finding.seen == ("the import of weekly from home, begun 2023-11-14 22:13:20Z, waits for volumes 2, 4 of 4")
    assert "entrepot import" in str(finding.advice)


def test_bases_that_take_more_than_half_of_the_quota_are_told() -> None:
    seen = BundlesSeen((("weekly", 40), ("monthly", 11)))
    (finding,) = judge_bundles(seen, PLAIN, 100)
    assert "weekly (40 B), monthly (11 B)" in finding.seen
    assert "entrepot bundle release" in str(finding.advice)
    assert judge_bundles(seen, PLAIN, 102) == judge_bundles(seen, PLAIN, None) == []


def test_a_signature_that_is_required_and_no_key_could_give_is_told() -> None:
    config = msgspec.structs.replace(PLAIN, bundles=BundlesConfig(require_signature=True))
    (finding,) = judge_bundles(BundlesSeen(), config, None)
    assert "no bundle will be taken" in finding.seen
