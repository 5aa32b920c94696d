"""`key`, `inventory` and `bundle` as people type them; what a bundle's volumes must be is tested in tests/bundle."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import stat
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from entrepot.cli import main
from entrepot.cli.status import people
from entrepot.status import Status
from entrepot.views import BaseView
from proxy.store import holding
from proxy.store.store import Store
from sync.bundle.digestfile import DigestFile, InventoryHeader, ReceiptHeader, write_digests
from sync.bundle.keys import PrivateKey
from sync.bundle.opened import open_bundles
from sync.bundle.plan import Base, Required
from sync.bundle.receipts import write_receipt
from sync.bundle.waiting import Waiting
from tests.bundle.writing import make_bundle, plan_of, write_bundle
from tests.store.contents import child, digest, parsed, put
from tests.support.contents import blob, make_image, make_index

FIRST = make_image([blob(30_000, 1), blob(40_000, 2)])
SECOND = make_image([blob(40_000, 2), blob(10_000, 3)])
BOTH = make_index({"linux/amd64": FIRST, "linux/arm64": SECOND})
ALPINE, BUSYBOX = "docker.io/library/alpine:3.20", "docker.io/library/busybox:1"


def entrepot(*arguments: str | Path) -> Result:
    return CliRunner(catch_exceptions=False).invoke(main, [str(item) for item in arguments])


def document(*arguments: str | Path, code: int = 0) -> Any:
    result = entrepot(*arguments, "--format", "json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration that trusts the key headquarters; the data folder holds an image of two blobs and a stray one."""

    async def fill() -> None:
        store = await Store.open(tmp_path / "data", region="ship")
        await put(store.catalog, "layer")
        await put(store.catalog, "image", parsed("image", child("layer")))
        await put(store.catalog, "stray")
        await store.catalog.lose_blob(await put(store.catalog, "lost"), lambda: False)
        held = [digest("layer"), digest("image")]
        await store.catalog.write(lambda transaction: holding.hold(transaction, "base:weekly", held, holding.FOR_EVER))
        await store.close()

    asyncio.run(fill())
    key = PrivateKey.new()
    key.save(tmp_path / "headquarters.key")
    key.public.save(tmp_path / "headquarters.pub")
    file = tmp_path / "site.toml"
    file.write_text(
        f'data = "{tmp_path / "data"}"\nregion = "ship"\n[[trusted_key]]\nname = "headquarters"\n'
        f'file = "{tmp_path / "headquarters.pub"}"\n'
    )
    return file


def test_a_new_key_is_two_files_and_the_section_for_the_other_side(tmp_path: Path) -> None:
    result = entrepot("key", "new", "headquarters", "-o", tmp_path)
    assert result.exit_code == 0
    (section,) = tomllib.loads(result.stdout[result.stdout.index("[[") :])["trusted_key"]
    assert (section["name"], section["repositories"]) == ("headquarters", ["*"])
    private = PrivateKey.load(tmp_path / "headquarters.key")
    assert stat.S_IMODE((tmp_path / "headquarters.key").stat().st_mode) == 0o600
    assert private.public.id in result.stdout
    assert "PRIVATE" not in result.output


@pytest.mark.parametrize("there", ["headquarters.key", "headquarters.pub"])
def test_no_key_is_overwritten_and_no_half_of_one_is_left(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    result = entrepot("key", "new", "headquarters", "-o", tmp_path)
    assert (result.exit_code, f"{there} is there already" in result.stderr) == (1, True)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(there, "mine")]


@pytest.mark.parametrize("name", ["a/b", "..", "", "a\nb"])
def test_a_key_that_no_file_can_be_called_by_is_a_wrong_usage(tmp_path: Path, name: str) -> None:
    assert entrepot("key", "new", name, "-o", tmp_path).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_trusted_key_that_is_none_is_told_by_config_check(site: Path) -> None:
    assert entrepot("config", "check", site).exit_code == 0
    shutil.copy(site.with_name("headquarters.key"), site.with_name("headquarters.pub"))
    result = entrepot("config", "check", site)
    assert result.exit_code == 3
    assert "trusted_key headquarters.file" in result.stdout
    assert "holds a private key: give the public one" in result.stdout


def test_config_check_says_whom_a_site_trusts_with_what(site: Path) -> None:
    assert "  trusts    headquarters to bring *" in entrepot("config", "check", site).stdout.splitlines()


def test_an_inventory_into_a_folder_that_is_not_there_is_refused_before_anything_is_read(
    site: Path, tmp_path: Path
) -> None:
    result = entrepot("inventory", "-o", tmp_path / "no" / "inventory", "--config", site)
    assert (result.exit_code, f"there is no folder {tmp_path}/no: make it" in result.stderr) == (1, True)


def test_an_inventory_has_what_is_stored_and_only_that(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.inventory"
    told = document("inventory", "-o", file, "--config", site)
    inventory = DigestFile.open(file)
    assert list(inventory) == sorted(digest(name) for name in ("layer", "image", "stray"))
    assert isinstance(inventory.header, InventoryHeader)
    assert (inventory.header.region, told["digests"], told["bytes"]) == ("ship", 3, len("layerimagestray"))
    assert told["size"] == file.stat().st_size
    assert f"entrepot export --base {file.name}" in entrepot("inventory", "-o", file, "--config", site).stdout


def test_an_inventory_is_read_in_pages(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrepot.holdings.PAGE", 1)
    assert document("inventory", "-o", tmp_path / "i", "--config", site)["digests"] == 3


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    for command in (["inventory", "-o", tmp_path / "i"], ["bundle", "release"]):
        result = entrepot(*command, "--data", tmp_path / "none")
        assert (result.exit_code, "there is no store in" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_list_says_what_a_bundle_is_and_who_signed_it(site: Path, tmp_path: Path) -> None:
    key = PrivateKey.load(tmp_path / "headquarters.key")
    volumes = make_bundle(tmp_path, [(ALPINE, FIRST), (BUSYBOX, BOTH)], key=key, split=60_000, series="weekly")
    volumes[-1].unlink()
    text = entrepot("bundle", "list", tmp_path, "--config", site).stdout
    assert f"signature of headquarters ({key.public.id}), which is trusted here" in text
    assert f"missing   volume {len(volumes)}" in text
    (listed,) = document("bundle", "list", tmp_path, "--config", site)["bundles"]
    images = {image["reference"]: image for image in listed["images"]}
    sizes = {one: sum(map(len, (one.body, *one.blobs))) for one in (FIRST, SECOND)}
    shared = 40_000
    assert images[ALPINE]["size"] == sizes[FIRST]
    assert images[BUSYBOX]["size"] == len(BOTH.body) + sizes[FIRST] + sizes[SECOND] - shared
    assert all(image["whole"] and image["size"] == image["brought"] for image in images.values())


def test_a_list_of_a_thin_bundle_says_what_it_stands_on(site: Path, tmp_path: Path) -> None:
    plan, blobs, documents = plan_of([(ALPINE, FIRST), (BUSYBOX, SECOND)])
    gone = {
        str(FIRST.digest): len(FIRST.body),
        **{blob.digest: blob.size for blob in plan.blobs if blob.size == 40_000},
    }
    thin = msgspec.structs.replace(
        plan,
        blobs=tuple(blob for blob in plan.blobs if blob.digest not in gone),
        requires=tuple(Required(digest, size, 0) for digest, size in gone.items()),
        bases=(
            Base("bundle", "sha256:0", "weekly of last week"),
            Base("inventory", "sha256:1", "the inventory of ship of today"),
        ),
    )
    write_bundle(tmp_path, thin, blobs, documents)
    text = entrepot("bundle", "list", tmp_path, "--config", site).stdout
    assert "stands on bundle weekly of last week, the inventory of ship of today: 2 blobs" in text
    assert "signature not trusted here: the bundle is not signed" in text
    assert f"{FIRST.digest[:19]}  all of it in the base" in text
    assert "KiB of it here" in text
    (listed,) = document("bundle", "list", tmp_path, "--config", site)["bundles"]
    alpine, busybox = listed["images"]
    assert (alpine["whole"], alpine["size"], alpine["brought"]) == (False, len(FIRST.body), 0)
    assert (busybox["whole"], busybox["size"] - busybox["brought"]) == (True, 40_000)


def test_verify_ends_with_3_when_something_is_wrong_missing_or_not_trusted(site: Path, tmp_path: Path) -> None:
    key = PrivateKey.load(tmp_path / "headquarters.key")
    disk = tmp_path / "disk"
    disk.mkdir()
    first, second, *_ = make_bundle(disk, [(ALPINE, FIRST)], key=key, split=50_000)
    result = entrepot("bundle", "verify", disk, "--config", site)
    assert (result.exit_code, "all as it must be" in result.stdout) == (0, True)
    with second.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"x")
    result = entrepot("bundle", "verify", disk, "--config", site)
    assert (result.exit_code, "wrong: volume 2 (site.002.tar)" in result.stdout) == (3, True)
    second.unlink()
    assert "missing: volume 2" in entrepot("bundle", "verify", disk, "--config", site).stdout
    assert document("bundle", "verify", disk, "--config", site, code=3)["faults"] == []
    assert first.exists()


def test_verify_takes_keys_and_may_require_one(tmp_path: Path) -> None:
    key = PrivateKey.new()
    key.public.save(tmp_path / "a.pub")
    PrivateKey.new().public.save(tmp_path / "b.pub")
    (path,) = make_bundle(tmp_path, [(ALPINE, FIRST)], key=key)
    for arguments, code, words in (
        ((), 0, "which is not known here"),
        (("--require-signature",), 3, "no key is trusted"),
        (("--verify-key", tmp_path / "a.pub"), 0, "signed by a.pub, which is trusted here"),
        (("--verify-key", tmp_path / "b.pub"), 3, "is not trusted here"),
        (("--verify-key", path), 1, "is no key: it has more than"),
    ):
        result = entrepot("bundle", "verify", path, *arguments, "--data", tmp_path / "none")
        assert (result.exit_code, words in result.output) == (code, True), result.output


def test_diff_compares_bundles_inventories_and_receipts(tmp_path: Path) -> None:
    (old,) = make_bundle(tmp_path, [(ALPINE, FIRST)], stem="old")
    (new,) = make_bundle(tmp_path, [(ALPINE, SECOND), (BUSYBOX, FIRST)], stem="new", created=1_700_000_500)
    found = document("bundle", "diff", old, new)
    assert (found["new"], found["gone"]) == ([BUSYBOX], [])
    assert found["moved"] == [{"reference": ALPINE, "a": FIRST.digest, "b": SECOND.digest}]
    assert (found["only_a"], found["both"]["blobs"]) == ({"blobs": 0, "bytes": 0, "unsized": 0}, 4)
    (bundle,) = open_bundles([old])
    bundle.close()
    write_receipt(tmp_path / "old.receipt", bundle.sealed, "ship", 5.0)
    write_digests(tmp_path / "site.inventory", InventoryHeader("ship", 1.0), [digest("elsewhere")])
    text = entrepot("bundle", "diff", tmp_path / "old.receipt", new).stdout
    assert "A: receipt of ship for default" in text
    assert f"new    {ALPINE}" in text
    assert f"new    {BUSYBOX}" not in text
    text = entrepot("bundle", "diff", tmp_path / "site.inventory", tmp_path / "old.receipt").stdout
    assert "only in A: 1 blob of unknown size; only in B: 4 blobs of unknown size; in both: 0 blobs, 0 B" in text


def test_diff_says_what_it_takes(tmp_path: Path) -> None:
    make_bundle(tmp_path, [(ALPINE, FIRST)], stem="old")
    (new,) = make_bundle(tmp_path, [(ALPINE, SECOND)], stem="new")
    result = entrepot("bundle", "diff", tmp_path, new)
    assert (result.exit_code, "holds 2 bundles, and one is compared" in result.stderr) == (1, True)
    (tmp_path / "photo").write_bytes(b"\xff" * 2000)
    result = entrepot("bundle", "diff", tmp_path / "photo", new)
    assert (result.exit_code, "it is no inventory and no receipt either" in result.stderr) == (1, True)
    result = entrepot("bundle", "diff", new, tmp_path / "photo")
    assert result.stderr.count("it is no inventory and no receipt either") == 1
    assert entrepot("bundle", "list", tmp_path / "photo").exit_code == 1
    assert entrepot("bundle", "list", tmp_path / "nowhere").exit_code == 1


def test_a_base_is_shown_and_let_go_of(site: Path, tmp_path: Path) -> None:
    assert document("bundle", "release", "--config", site) == {
        "bases": [{"series": "weekly", "digests": 2, "images": 1, "bytes": len("layerimage")}],
        "imports": [],
    }
    why = document("why", digest("layer"), "--config", site)
    assert why["held"] == ["base:weekly"]
    assert any("until entrepot bundle release weekly" in line for line in why["because"])
    result = entrepot("bundle", "release", "monthly", "--config", site)
    assert (result.exit_code, "kept are those of weekly" in result.stderr) == (1, True)
    assert document("bundle", "release", "weekly", "--config", site) == {"series": "weekly", "digests": 2}
    assert document("why", digest("layer"), "--config", site)["held"] == []
    assert entrepot("bundle", "release", "--config", site).stdout == "no base of bundles is kept here\n"
    assert entrepot("bundle", "release", "weekly", "--config", site).exit_code == 1


def test_an_import_that_waits_is_shown_and_given_up_with_all_that_is_kept_for_it(site: Path, tmp_path: Path) -> None:
    first, *_ = make_bundle(
        tmp_path, [(ALPINE, FIRST)], split=40_000, series="monthly", key=PrivateKey.load(tmp_path / "headquarters.key")
    )
    assert entrepot("import", first, "--config", site).exit_code == 3
    assert "import of monthly from eu-west, begun" in entrepot("bundle", "release", "--config", site).stdout
    assert entrepot("bundle", "release", "--unfinished", "--config", site).exit_code == 2
    (state,) = (tmp_path / "data" / "bundles" / "imports").iterdir()
    with (state / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = entrepot("bundle", "release", "monthly", "--unfinished", "--config", site)
        assert (result.exit_code, "is running: end it first" in result.stderr) == (1, True)
    done = document("bundle", "release", "monthly", "--unfinished", "--config", site)
    assert (done["plans"], done["digests"]) == ([f"sha256:{state.name}"], 4)
    assert not state.exists()
    assert document("bundle", "release", "--config", site)["imports"] == []
    assert document("bundle", "release", "--config", site)["bases"][0]["series"] == "weekly"
    assert entrepot("bundle", "release", "monthly", "--unfinished", "--config", site).exit_code == 1


def test_why_says_until_when_an_import_needs_a_blob(site: Path, tmp_path: Path) -> None:
    async def hold() -> None:
        store = await Store.open(tmp_path / "data")
        held = [digest("stray")]
        await store.catalog.write(lambda transaction: holding.hold(transaction, "import:abcdef", held, 4e9))
        await store.close()

    asyncio.run(hold())
    said = entrepot("why", digest("stray"), "--config", site).stdout
    assert "an import needs it (abcdef): eviction leaves it alone until 2096-10-02" in said


def test_status_tells_what_bases_are_kept_and_which_imports_wait() -> None:
    bases = (BaseView("weekly", 9),)
    imports = (Waiting("sha256:0", "monthly", "home", 4, (2, 4), 1_700_000_000.0),)
    told = Status("1", 4, "ready", (), "ship", False, "", 1.0, (), (), None, None, (), {}, bases=bases, imports=imports)
    said = people(msgspec.to_builtins(told))
    assert "kept as bases of bundles: weekly (9 blobs)" in said
    assert "import of monthly from home, begun 2023-11-14 22:13:20Z: waits for volumes 2, 4 of 4" in said


def test_a_receipt_is_known_by_its_header(tmp_path: Path) -> None:
    (path,) = make_bundle(tmp_path, [(ALPINE, FIRST)])
    (bundle,) = open_bundles([path])
    bundle.close()
    write_receipt(tmp_path / "r", bundle.sealed, "ship", 5.0)
    header = DigestFile.open(tmp_path / "r").header
    assert isinstance(header, ReceiptHeader)
    (listed,) = document("bundle", "list", path, "--data", tmp_path)["bundles"]
    assert (listed["plan"], listed["spoken"]) == (header.plan, header.spoken)
