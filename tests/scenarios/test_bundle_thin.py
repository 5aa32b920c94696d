"""Thin bundles: what changed since a base, and nothing else; on a site that has not the base, nothing at all.

Twenty images are at home and, by a first bundle, on a site. Then three change upstream, and one tag moves between two
images that both sides know. Each test works on copies of the two data folders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.bundles import Site, brought, closure
from tests.support.contents import Image, blob, make_image
from tests.support.fake_upstream import FakeUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHANGED = ("library/app0:1", "library/app1:1", "library/app2:1")
MOVED = "library/app3:stable"


def app(number: int, version: int) -> Image:
    """Return a version of an app: a layer that all versions have, and one of its own."""
    return make_image([blob(40_000, seed=1000 + number), blob(3000, seed=2000 + 100 * number + version)])


BASE = [*(app(number, 1) for number in range(19)), app(3, 2)]


def names_some(told: str, images: list[Image]) -> bool:
    return any(digest in told for digest in closure(images))


@dataclass
class Stage:
    """Home and the site after the first bundle; the upstream and home's tags are as they were after the change."""

    folder: Path
    upstream: FakeUpstream
    home: Site
    site: Site
    base: Path
    before: dict[str, str]
    after: dict[str, str]
    fresh: set[str]
    said: dict[str, object]

    def home_in(self, folder: Path) -> Site:
        return self.home.copy(folder / "home")

    def site_in(self, folder: Path) -> Site:
        return self.site.copy(folder / "site")

    @property
    def receipt(self) -> Path:
        """The receipt that the site wrote."""
        (found,) = (self.site.data / "bundles" / "receipts").glob("*.receipt")
        return found


def digests(images: dict[str, Image]) -> dict[str, str]:
    return {tag: str(image.digest) for tag, image in images.items()}


def publish(upstream: FakeUpstream, images: dict[str, Image]) -> None:
    for tag, image in images.items():
        repository, _, name = tag.rpartition(":")
        image.publish(upstream, repository, name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("thin")
    first = {f"library/app{number}:1": app(number, 1) for number in range(19)}
    first |= {MOVED: app(3, 1), "library/app3:2": app(3, 2)}
    second = first | {tag: app(number, 2) for number, tag in enumerate(CHANGED)} | {MOVED: app(3, 2)}
    async with FakeUpstream() as upstream:
        publish(upstream, first)
        home, site = Site(folder, "home", upstream.url), Site(folder, "site")
        base = folder / "base.tar"
        await home.runs("export", "-o", str(base), *(f"docker.io/{tag}" for tag in first))
        said = await site.says("import", str(base))
        publish(upstream, second)
        fresh = closure(second.values()) - closure(first.values())
        yield Stage(folder, upstream, home, site, base, digests(first), digests(second), fresh, said)


async def thin(stage: Stage, home: Site, target: Path, base: str) -> Path:
    """Export what changed since a base."""
    references = [f"docker.io/{tag}" for tag in stage.after]
    await home.runs("export", "-o", str(target), "--base", base, *references)
    return target


async def test_a_thin_bundle_holds_what_is_new_and_nothing_else_and_all_images_pull(
    stage: Stage, tmp_path: Path
) -> None:
    """A tag that merely moved between known images is carried."""
    bundle = await thin(stage, stage.home_in(tmp_path), tmp_path / "thin.tar", str(stage.receipt))
    assert brought(bundle) == stage.fresh
    site = stage.site_in(tmp_path)
    assert site.shown() == stage.before
    await site.runs("import", str(bundle))
    assert site.shown() == stage.after
    assert site.leftovers() == []
    async with site.serving():
        await site.pulls(stage.after)


async def test_on_the_wrong_site_a_thin_bundle_is_refused_and_writes_nothing(stage: Stage, tmp_path: Path) -> None:
    bundle = await thin(stage, stage.home_in(tmp_path), tmp_path / "thin.tar", str(stage.base))
    empty = Site(tmp_path, "empty")
    told = await empty.refuses("import", str(bundle))
    assert names_some(told, BASE)
    assert "library/app" in told
    assert "home" in told  # the base, by the name of its series
    files, rows = empty.state()
    assert not files
    assert not [row for row in rows if "sha256" in row or "library/" in row]


@pytest.mark.slow
async def test_on_a_site_with_another_base_a_thin_bundle_is_refused_and_writes_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    home = stage.home_in(tmp_path)
    other = tmp_path / "other.tar"
    await home.runs("export", "-o", str(other), "--series", "other", "docker.io/library/app4:1")
    bundle = await thin(stage, home, tmp_path / "thin.tar", str(stage.base))
    site = Site(tmp_path, "elsewhere")
    await site.runs("import", str(other))
    before = site.state()
    told = await site.refuses("import", str(bundle))
    assert names_some(told, BASE[:4] + BASE[5:])
    assert site.state() == before


@pytest.mark.slow
async def test_a_base_is_a_bundle_a_receipt_an_inventory_or_what_was_said_on_the_telephone(
    stage: Stage, tmp_path: Path
) -> None:
    inventory = tmp_path / "site.inventory"
    await stage.site.runs("inventory", "-o", str(inventory))
    spoken = str(stage.said["spoken"])
    assert len(spoken.replace(" ", "")) == 12
    home = stage.home_in(tmp_path)
    for number, base in enumerate((str(stage.base), str(stage.receipt), str(inventory), spoken)):
        assert brought(await thin(stage, home, tmp_path / f"thin{number}.tar", base)) == stage.fresh, base


@pytest.mark.slow
async def test_a_thin_bundle_stands_on_a_thin_one(stage: Stage, tmp_path: Path) -> None:
    home, site = stage.home_in(tmp_path), stage.site_in(tmp_path)
    first = await thin(stage, home, tmp_path / "thin1.tar", str(stage.base))
    said = await site.says("import", str(first))
    newest = app(7, 9)
    try:
        newest.publish(stage.upstream, "library/app7", "1")
        bases = ("--base", str(stage.base), "--base", str(said["spoken"]))
        second = tmp_path / "thin2.tar"
        await home.runs("export", "-o", str(second), *bases, *(f"docker.io/{tag}" for tag in stage.after))
        assert brought(second) == closure([newest]) - closure([app(7, 1)])
        await site.runs("import", str(second))
        wanted = stage.after | {"library/app7:1": str(newest.digest)}
        assert site.shown() == wanted
        async with site.serving():
            await site.pulls(wanted)
    finally:
        app(7, 1).publish(stage.upstream, "library/app7", "1")


@pytest.mark.slow
async def test_several_bundles_at_once_are_taken_in_the_order_in_which_they_stand_on_each_other(
    stage: Stage, tmp_path: Path
) -> None:
    bundle = await thin(stage, stage.home_in(tmp_path), tmp_path / "a-thin.tar", str(stage.base))
    site = Site(tmp_path, "late")
    await site.runs("import", str(bundle), str(stage.base))
    assert site.shown() == stage.after


@pytest.mark.slow
async def test_an_older_bundle_moves_no_tag_back_but_by_force(stage: Stage, tmp_path: Path) -> None:
    bundle = await thin(stage, stage.home_in(tmp_path), tmp_path / "thin.tar", str(stage.base))
    site = stage.site_in(tmp_path)
    await site.runs("import", str(bundle))
    told = await site.refuses("import", str(stage.base), code=3)
    assert "library/app0:1" in told
    assert site.shown() == stage.after
    await site.runs("import", "--force", str(stage.base))
    assert site.shown() == stage.before
    async with site.serving():
        await site.pulls(stage.before)


@pytest.mark.slow
async def test_the_same_bundle_twice_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    site = stage.site_in(tmp_path)
    before = site.state()
    await site.runs("import", str(stage.base))
    assert site.state() == before
