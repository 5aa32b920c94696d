"""What `serve --from` is made of: whose bundles it takes, which upstream is meant, when it is ready."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from entrepot import __version__
from entrepot.config import Config, load
from entrepot.serving_bundles import default_of, opened
from metrics.prometheus import Metrics
from sync.bundle.errors import Refused, Untrusted
from sync.bundle.keys import PrivateKey
from tests.bundle.writing import make_bundle
from tests.support.contents import blob, make_image

IMAGES = [("docker.io/team/app:1", make_image([blob(300_000)]))]


def configured(folder: Path, place: Path, text: str = "") -> Config:
    file = folder / "entrepot.toml"
    file.write_text(f'from = "{place}"\n{text}')
    return load(file, {}, {})


async def counted(config: Config) -> tuple[int, int]:
    assert config.serve_from is not None
    async with opened(config, config.serve_from, Metrics(version=__version__)) as serving:
        return serving.served.counted()


def trusting(key: PrivateKey, folder: Path, globs: str) -> str:
    key.public.save(folder / "hq.pub")
    return f'[[trusted_key]]\nname = "hq"\nfile = "hq.pub"\nrepositories = ["{globs}"]\n'


async def test_unsigned_bundle_is_served_unless_a_signature_is_wanted(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    assert await counted(configured(tmp_path, path)) == (1, 1)
    with pytest.raises(Untrusted, match="a signature is required here"):
        await counted(configured(tmp_path, path, "[bundles]\nrequire_signature = true\n"))


async def test_trusted_key_brings_its_repositories_and_no_others(tmp_path: Path) -> None:
    key = PrivateKey.new()
    (path,) = make_bundle(tmp_path, IMAGES, key=key)
    told = trusting(key, tmp_path, "docker.io/team/*")
    assert await counted(configured(tmp_path, path, told)) == (1, 1)
    with pytest.raises(Refused, match=r"docker\.io/team/app, which the key hq may not"):
        await counted(configured(tmp_path, path, told.replace("team/*", "library/*")))


async def test_folder_of_two_bundles_is_served_as_one(tmp_path: Path) -> None:
    make_bundle(tmp_path, IMAGES, stem="one")
    make_bundle(tmp_path, [("ghcr.io/team/app:1", IMAGES[0][1])], stem="two")
    assert await counted(configured(tmp_path, tmp_path)) == (2, 2)


async def test_not_ready_while_a_volume_cannot_be_read(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, IMAGES)
    config = configured(tmp_path, path)
    whole = path.read_bytes()
    async with opened(config, path, Metrics(version=__version__)) as serving:
        assert (await serving.readiness()).serving
        os.truncate(path, 0)
        ready = await serving.readiness()
        assert (ready.status, ready.serving) == ("damaged", False)
        assert path.name in ready.reasons[0]
        assert (await serving.status()).reasons == ready.reasons
        path.write_bytes(whole)
        assert (await serving.readiness()).serving


@pytest.mark.parametrize(
    ("brought", "meant"),
    [
        ({"docker.io", "ghcr.io"}, "ghcr.io"),
        ({"docker.io", "quay.io"}, "docker.io"),
        ({"quay.io", "gcr.io"}, "gcr.io"),
        (set(), "ghcr.io"),
    ],
)
def test_upstream_that_is_meant_is_one_that_is_brought(brought: set[str], meant: str) -> None:
    config = load(None, {}, {"upstream": ("ghcr.io=https://ghcr.io",)})
    assert default_of(config, brought) == meant
