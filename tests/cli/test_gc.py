"""`entrepot gc` on a store that nobody serves, and at the control socket of a mirror that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from entrepot.cli import main
from entrepot.collecting import Gone, collect
from metrics.events import ignore
from proxy.oci.digest import Digest
from proxy.store.catalog import Proof
from proxy.store.store import Store
from tests.store.contents import ALPINE


async def fill(root: Path, count: int) -> list[Digest]:
    store = await Store.open(root)
    digests = []
    for number in range(count):
        body = b"%04d" % number * 250
        digests.append(Digest.of(body))
        spool = await store.begin(digests[-1], len(body), ALPINE)
        spool.write(0, body)
        await store.commit(spool, size=len(body), repository=ALPINE, proof=Proof.FETCHED, public=True)
    await store.close()
    return digests


def gc(data: Path, *arguments: str) -> dict[str, object]:
    environment = {"ENTREPOT_QUOTA": "5KiB"}
    result = CliRunner(env=environment).invoke(main, ["gc", "--data", str(data), "--format", "json", *arguments])
    assert result.exit_code == 0, result.output
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_a_dry_run_names_what_goes_and_the_run_takes_just_that(tmp_path: Path) -> None:
    digests = asyncio.run(fill(tmp_path, 10))
    foreseen = gc(tmp_path, "--dry-run")
    assert (foreseen["closures"], foreseen["freed"], foreseen["used"]) == (6, 6000, 10_000)
    done = gc(tmp_path)
    assert (done["dry_run"], done["used"], done["high"], done["low"]) == (False, 4000, 5120, 4608)
    assert done["evicted"] == foreseen["evicted"]
    assert isinstance(done["evicted"], list)
    assert [one["digest"] for one in done["evicted"]] == digests[:6]
    assert gc(tmp_path)["closures"] == 0


def test_people_are_told_in_lines(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, 2))
    result = CliRunner(env={"ENTREPOT_QUOTA": "1KiB"}).invoke(main, ["gc", "--data", str(tmp_path)])
    assert result.exit_code == 0
    assert "evicted: docker.io/library/alpine@sha256:" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 evicted, 2.0 KiB; now 0 B of 1.0 KiB used"


def test_a_folder_without_a_store_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["gc", "--data", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "there is no store" in result.stderr


@pytest.mark.parametrize("dry_run", [True, False])
async def test_each_closure_is_reported(tmp_path: Path, dry_run: bool) -> None:
    await fill(tmp_path, 3)
    store = await Store.open(tmp_path)
    told: list[Gone] = []
    end = await collect(store, 2500, ignore, told.append, dry_run=dry_run)
    assert (len(told), end.closures, end.used) == (1, 1, 3000 if dry_run else 2000)
    await store.close()
