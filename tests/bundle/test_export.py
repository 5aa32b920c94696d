"""Exports on a real store over a fake upstream: what a bundle holds, and that it is the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from entrepot.exportasking import WrongRequest
from proxy.oci.digest import Digest
from sync.bundle.errors import BundleError, Refused
from tests.bundle.exporting import Home, checked, plan_of, tags
from tests.support.bundles import brought, closure
from tests.support.contents import Image, blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

APP = "library/app"


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def home(upstream: FakeUpstream, tmp_path: Path) -> Home:
    return Home(tmp_path, upstream)


def image(number: int, size: int = 3000) -> Image:
    return make_image([blob(9000, seed=1), blob(size, seed=100 + number)])


async def test_a_bundle_holds_everything_of_its_images_and_other_programs_find_them(home: Home) -> None:
    one = make_index({"linux/amd64": image(1), "linux/arm64": image(2)})
    one.publish(home.upstream, APP, "1")
    report = await home.export("app:1")
    volume = checked(home.folder / "site.tar")
    assert brought(volume.path) == closure([one])
    assert tags(volume.sealed.plan) == {"docker.io/library/app:1": str(one.digest)}
    assert report.lacking == ()
    assert (report.images, report.number_of_volumes) == (1, 1)
    hash = hashlib.sha256(volume.path.read_bytes()).hexdigest()
    assert (home.folder / "site.sha256").read_text() == f"{hash}  site.tar\n"
    assert home.left() == ["site.sha256", "site.tar"]


async def test_equal_exports_are_equal_to_the_byte(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    await home.export("app:1")
    await home.export("app:1", name="again.tar")
    assert (home.folder / "site.tar").read_bytes() == (home.folder / "again.tar").read_bytes()


async def test_volumes_are_smaller_than_asked_and_an_export_of_the_same_again_is_done_at_once(home: Home) -> None:
    image(1, 300_000).publish(home.upstream, APP, "1")
    report = await home.export("app:1", split=100_000)
    paths = [Path(volume.file) for volume in report.volumes]
    assert [path.name for path in paths] == [f"site.{number:03}.tar" for number in range(1, len(paths) + 1)]
    assert len(paths) > 3
    assert all(checked(path).size < 100_000 for path in paths)
    before = [path.stat().st_mtime_ns for path in paths]
    assert (await home.export("app:1", split=100_000)).volumes == report.volumes
    assert [path.stat().st_mtime_ns for path in paths] == before


async def test_files_of_another_bundle_are_not_replaced(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    image(2).publish(home.upstream, APP, "2")
    await home.export("app:1")
    before = (home.folder / "site.tar").read_bytes()
    with pytest.raises(Refused, match="belongs to another bundle"):
        await home.export("app:2")
    assert (home.folder / "site.tar").read_bytes() == before
    assert home.left() == ["site.sha256", "site.tar"]


async def test_a_thin_bundle_holds_what_is_new_whatever_the_base_is_known_by(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    image(2).publish(home.upstream, APP, "2")
    first = await home.export("app:1")
    fresh = closure([image(2)]) - closure([image(1)])
    for number, base in enumerate((str(home.folder / "site.tar"), first.spoken, first.plan)):
        await home.export("app:1", "app:2", bases=(base,), name=f"thin{number}.tar")
        plan = checked(home.folder / f"thin{number}.tar").sealed.plan
        assert {one.digest for one in plan.blobs} == fresh
        assert {one.digest for one in plan.requires} == closure([image(1)])
        assert [one.name for one in plan.bases] == [first.plan]
        assert set(tags(plan)) == {"docker.io/library/app:1", "docker.io/library/app:2"}


async def test_what_is_no_base_is_told_what_one_is(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    (home.folder / "notes.txt").write_text("none")
    for base in ("gone.tar", str(home.folder / "notes.txt"), "1234 5678 9012", "ffffffff"):
        with pytest.raises(BundleError, match="inventory"):
            await home.export("app:1", bases=(base,))


async def test_of_an_index_only_the_platforms_asked_for_are_brought(home: Home) -> None:
    amd64, arm64 = image(1), make_image([blob(5000, seed=7)], platform="linux/arm64")
    index = make_index({"linux/amd64": amd64, "linux/arm64": arm64})
    index.publish(home.upstream, APP, "1")
    await home.export("app:1", platforms=("linux/arm64",))
    plan = plan_of(home.folder / "site.tar")
    assert {one.digest for one in plan.blobs} == {str(index.digest)} | closure([arm64])
    assert plan.platforms == ("linux/arm64",)
    with pytest.raises(BundleError, match="no image for linux/s390x"):
        await home.export("app:1", platforms=("linux/s390x",), name="other.tar")


async def test_signatures_of_signatures_come_along_however_they_refer(home: Home) -> None:  # P12, P13
    one = image(1)
    one.publish(home.upstream, APP, "1")
    sbom = make_image([blob(100, seed=31)], subject=one, artifact_type="application/spdx+json")
    signed = make_image([blob(100, seed=32)], subject=sbom, artifact_type="application/signature")
    cosign = make_image([blob(100, seed=33)])
    sbom.publish(home.upstream, APP)
    signed.publish(home.upstream, APP)
    tag = f"sha256-{one.digest.hex}.sig"
    cosign.publish(home.upstream, APP, tag)
    image(5).publish(home.upstream, APP, f"sha256-{'0' * 64}.sig")
    await home.export("app:1")
    plan = plan_of(home.folder / "site.tar")
    assert {blob.digest for blob in plan.blobs} == closure([one, sbom, signed, cosign])
    assert tags(plan) == {
        "docker.io/library/app:1": str(one.digest),
        f"docker.io/library/app:{tag}": str(cosign.digest),
    }
    assert {image.subject for image in plan.images if image.tag is None} == {str(one.digest), str(sbom.digest)}
    await home.export("app:1", name="alone.tar", referrers=False)
    assert brought(home.folder / "alone.tar") == closure([one])


async def test_what_cannot_be_had_is_named_and_the_rest_is_written(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    broken = image(2)
    broken.publish(home.upstream, APP, "2")
    del home.upstream.blobs[APP][Digest.of(broken.blobs[2])]
    report = await home.export("app:1", "app:2", "app:3")
    assert set(tags(plan_of(home.folder / "site.tar"))) == {"docker.io/library/app:1"}
    named = {one.what for one in report.lacking}
    assert {"docker.io/library/app:2", "docker.io/library/app:3"} <= named
    with pytest.raises(BundleError, match="nothing to export"):
        await home.export("app:3", name="none.tar")


async def test_offline_what_is_known_is_exported_by_glob_and_list(home: Home) -> None:
    image(1).publish(home.upstream, APP, "3.1")
    image(2).publish(home.upstream, APP, "4.1")
    image(3).publish(home.upstream, "library/other", "1")
    await home.export("app:3.1", "app:4.1", "other:1", name="first.tar")
    home.offline = True
    asked = len(home.upstream.requests)
    await home.export(repositories=("docker.io/library/*:3.*",))
    assert set(tags(plan_of(home.folder / "site.tar"))) == {"docker.io/library/app:3.1"}
    (home.folder / "images.txt").write_text("# ours\napp:4.1  # new\n\nother:1\n")
    await home.export(file=home.folder / "images.txt", name="listed.tar")
    assert set(tags(plan_of(home.folder / "listed.tar"))) == {"docker.io/library/app:4.1", "docker.io/library/other:1"}
    report = await home.export("app:3.1", "app:9", name="lacking.tar")
    assert [one.what for one in report.lacking] == ["docker.io/library/app:9"]
    assert len(home.upstream.requests) == asked


async def test_a_bad_line_of_a_list_is_named(home: Home) -> None:
    (home.folder / "images.txt").write_text("app:1\nApp:::\n")
    with pytest.raises(BundleError, match=r"images\.txt, line 2"):
        await home.export(file=home.folder / "images.txt")
    (home.folder / "images.txt").write_text("app:1\n", "utf-16")
    with pytest.raises(BundleError, match="not text in UTF-8"):
        await home.export(file=home.folder / "images.txt")


async def test_a_list_may_come_from_windows(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    image(2).publish(home.upstream, APP, "2")
    (home.folder / "images.txt").write_bytes(b"\xef\xbb\xbfapp:1\r\n\r\n# more\r\napp:2\r\napp:1\r\n")
    await home.export(file=home.folder / "images.txt")
    assert set(tags(plan_of(home.folder / "site.tar"))) == {f"docker.io/library/app:{tag}" for tag in "12"}


@pytest.mark.parametrize("series", ["", "a\nb", "x" * 256])
async def test_a_series_that_no_site_would_take_is_refused_before_anything_is_pulled(home: Home, series: str) -> None:
    image(1).publish(home.upstream, APP, "1")
    with pytest.raises(WrongRequest, match="no name"):
        await home.export("app:1", series=series)
    assert home.upstream.requests == []


async def test_a_dry_run_tells_what_would_be_and_pulls_no_blob(home: Home) -> None:
    image(1, 300_000).publish(home.upstream, APP, "1")
    tried = await home.export("app:1", dry_run=True, split=100_000)
    assert home.upstream.count(contains="/blobs/") == 0
    assert home.left() == []
    report = await home.export("app:1", split=100_000)
    assert (tried.images, tried.blobs, tried.bytes) == (report.images, report.blobs, report.bytes)
    assert tried.number_of_volumes == report.number_of_volumes
    assert tried.missing == 3


async def test_the_time_is_that_of_the_newest_image_or_of_the_environment(home: Home) -> None:
    image(1).publish(home.upstream, APP, "1")
    config = json.dumps({"os": "linux", "architecture": "amd64", "created": "2024-05-01T10:00:00.123456789Z"}).encode()
    body = json.loads(image(2).body)
    body["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
    dated = Image(image(2).media_type, json.dumps(body).encode(), (config, *image(2).blobs[1:]))
    dated.publish(home.upstream, APP, "2")
    await home.export("app:1", "app:2")
    assert plan_of(home.folder / "site.tar").created == 1714557600
    await home.export("app:1", "app:2", name="epoch.tar", epoch=86400)
    assert plan_of(home.folder / "epoch.tar").created == 86400
