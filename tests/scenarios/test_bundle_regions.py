"""What one region has taken in from a disk, the others have over the network: a bundle's images are a region's own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bundle.writing import make_bundle
from tests.scenarios.fleets import pull
from tests.support.contents import blob, make_image, make_index
from tests.support.regions import regions, shows, until

OLD, NEW = "library/carried:1", "library/carried:2"


async def test_what_was_imported_in_one_region_is_whole_in_the_other_though_neither_has_an_upstream(
    tmp_path: Path,
) -> None:
    """The import works beside the mirror of A, which B follows; a signature that comes with it arrives too."""
    parts = {f"linux/{name}": make_image([blob(3000, seed)]) for seed, name in enumerate(("amd64", "arm64"))}
    index, single = make_index(parts), make_image([blob(200_000, 7)])
    signature = make_image([blob(100, 9)], subject=index, artifact_type="application/vnd.example.signature")
    (bundle,) = make_bundle(
        tmp_path,
        [
            (f"docker.io/{OLD}", index),
            (f"docker.io/{NEW}", single),
            (f"docker.io/library/carried@{signature.digest}", signature),
        ],
    )
    wanted = {str(one.digest) for one in (index, single, signature, *index.children)}
    async with regions(tmp_path, {"a": None, "b": None}, {"b": ["a"]}) as world:
        await asyncio.to_thread(world["a"].entrepot, "import", str(bundle))
        for region in (world["a"], world["b"]):
            await shows(region, OLD, index.digest)
            await shows(region, NEW, single.digest)
            await until(f"{region.name} has all of it", region.present, wanted.issubset)
            assert set(await pull(region, *NEW.split(":"))) == {200}
            for part in parts.values():
                assert set(await pull(region, "library/carried", part.digest)) == {200}
        roots = "SELECT digest FROM membership WHERE root IS NOT NULL"
        assert set(world["a"].read(roots)) == {(str(one.digest),) for one in (index, single, signature)}
        assert set(world["b"].read(roots)) == set(world["a"].read(roots))
