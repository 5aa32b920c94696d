"""From images to a plan: order, what a base saves, and the documents by which other programs find the images."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from entrepot import exporting
from entrepot.cli import main
from proxy.oci.digest import Digest
from sync.bundle import making
from sync.bundle.archive import KEPT, Archive
from sync.bundle.bases import open_bases
from sync.bundle.digestfile import InventoryHeader, write_digests
from sync.bundle.errors import BundleError, Refused
from sync.bundle.layout import cut, seal
from sync.bundle.making import Choice, Draft, Manifest, Part, Top, created_of, make
from sync.bundle.plan import Tagged, read_plan, write_plan
from sync.bundle.receipts import spoken, write_receipt

OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ALPINE = "docker.io/library/alpine"


def digest(name: str) -> str:
    return str(Digest.of(name.encode()))


def part(name: str, role: str = "layer", platform: str = "", *, required: bool = True, wanted: bool = True) -> Part:
    return Part(digest(name), len(name), role, platform, required, wanted)


def image(*layers: Part, config: str = "config") -> Manifest:
    return Manifest(OCI, 10, "image", (part(config, "config"), *layers))


def index(*parts: Part) -> Manifest:
    return Manifest(INDEX, 20, "index", parts)


def top(name: str, tag: str | None = "1", repository: str = ALPINE) -> Top:
    return Top(repository, digest(name), None if tag is None else Tagged(tag, 1, "home", 5.0))


def draft(tops: Sequence[Top], base: Sequence[str] = (), **manifests: Manifest) -> Draft:
    known = {digest(name): manifest for name, manifest in manifests.items()}
    return make(Choice("series", "home", 7, tops, known, base=frozenset(map(digest, base))))


def documents(made: Draft) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return the entries of index.json and of manifest.json."""
    assert [document.name for document in made.plan.documents] == ["oci-layout", "index.json", "manifest.json"]
    return json.loads(made.documents[1])["manifests"], json.loads(made.documents[2])


def names(made: Draft, *known: str) -> list[str]:
    by_digest = {digest(name): name for name in known}
    return [by_digest[one.digest] for one in made.plan.blobs]


def test_manifests_come_first_then_configs_then_layers_as_images_need_them() -> None:
    made = draft(
        [top("b", "2"), top("a", "1")],
        a=image(part("base"), part("a-layer"), config="a-config"),
        b=image(part("base"), part("b-layer"), config="b-config"),
    )
    every = ("a", "b", "a-config", "b-config", "base", "a-layer", "b-layer")
    assert names(made, *every) == list(every)
    assert [one.media_type for one in made.plan.blobs] == [OCI, OCI, None, None, None, None, None]


def test_what_the_base_has_is_required_and_a_tag_that_moved_is_carried_all_the_same() -> None:
    made = draft(
        [top("a"), top("b", "2")],
        base=["a", "config", "base"],
        a=image(part("base")),
        b=image(part("base"), part("new")),
    )
    assert names(made, "b", "new") == ["b", "new"]
    assert {one.digest for one in made.plan.requires} == {digest("a"), digest("config"), digest("base")}
    assert [image.digest for image in made.plan.images] == [digest("a"), digest("b")]
    entries, loadable = documents(made)
    assert [entry["digest"] for entry in entries] == [digest("b")]
    assert loadable == []
    whole = draft([top("a")], base=["a", "config", "base"], a=image(part("base")))
    assert whole.plan.blobs == ()
    assert len(whole.plan.images) == 1


def test_docker_loads_the_image_itself_or_the_one_of_an_index_for_linux_amd64() -> None:
    made = draft(
        [top("list"), top("arm", "arm"), top("chart", "chart"), top("foreign", "foreign"), top("amd", None)],
        list=index(
            part("proof", "manifest", "unknown/unknown"),
            part("arm", "manifest", "linux/arm64"),
            part("amd", "manifest", "linux/amd64"),
        ),
        proof=image(part("statement"), config="proof-config"),
        arm=image(part("arm-layer"), config="arm-config"),
        amd=image(part("amd-layer"), part("amd-layer"), config="amd-config"),
        chart=Manifest(OCI, 10, "artifact", (part("config", "config"), part("tgz"))),
        foreign=image(part("windows", required=False, wanted=False)),
    )
    entries, loadable = documents(made)
    by_tag = {entry["RepoTags"][0]: entry for entry in loadable}  # type: ignore[index]
    assert set(by_tag) == {f"{ALPINE}:1", f"{ALPINE}:arm"}
    path = f"blobs/sha256/{Digest(digest('amd-layer')).hex}"
    assert by_tag[f"{ALPINE}:1"]["Layers"] == [path, path]
    assert len(entries) == 5
    annotations = {tuple(entry["annotations"].values()) for entry in entries}  # type: ignore[attr-defined]
    assert (f"{ALPINE}@{digest('amd')}",) * 2 in annotations
    assert digest("windows") not in {one.digest for one in made.plan.blobs}


def test_a_referrer_without_a_tag_has_no_name_in_the_index() -> None:
    made = draft([top("sbom", None)], sbom=Manifest(OCI, 10, "artifact", (part("config", "config"),), digest("a")))
    ((entry,), _) = documents(made)
    assert "annotations" not in entry
    assert made.plan.images[0].subject == digest("a")


def test_too_many_blobs_are_to_be_split_by_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "MAX_BLOBS", 3)
    with pytest.raises(Refused, match="by repository"):
        draft([top("a")], a=image(part("one"), part("two")))


def test_too_many_images_are_to_be_split_by_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "MAX_IMAGES", 1)
    assert draft([top("a")], a=image(part("one")))
    with pytest.raises(Refused, match=r"these are 2 images, more than the 1 of a bundle: .* by repository"):
        draft([top("a"), top("b")], a=image(part("one")), b=image(part("two")))


@given(
    st.lists(st.lists(st.sampled_from("stuvwxyz"), max_size=5), min_size=1, max_size=4),
    st.sets(st.sampled_from([*"stuvwxyz", "config", "image0"])),
    st.randoms(use_true_random=False),
)
def test_a_plan_is_valid_and_the_same_in_whatever_order_images_were_chosen(
    layers: list[list[str]], base: set[str], random: object
) -> None:
    manifests = {f"image{number}": image(*map(part, names)) for number, names in enumerate(layers)}
    tops = [top(name, name) for name in manifests]
    made = draft(tops, sorted(base), **manifests)
    sealed = seal(cut(made.plan, None, 0))
    assert read_plan(sealed.body) == sealed
    random.shuffle(tops)  # type: ignore[attr-defined]
    assert write_plan(draft(tops, sorted(base), **manifests).plan) == write_plan(made.plan)


@pytest.mark.parametrize(
    ("config", "moment"),
    [
        (b'{"created":"2024-05-01T10:00:00Z"}', 1714557600),
        (b'{"created":"2024-05-01T12:00:00.123456789+02:00"}', 1714557600),
        (b'{"created":"1969-12-31T23:59:59Z"}', 0),
        (b'{"created":"yesterday"}', 0),
        (b'{"created":null}', 0),
        (b"[]", 0),
        (b"\xff", 0),
    ],
)
def test_the_time_of_an_image_is_what_its_config_says(config: bytes, moment: int) -> None:
    assert created_of(config) == moment


def test_a_base_is_an_inventory_a_receipt_or_what_was_spoken(tmp_path: Path) -> None:
    made = draft([top("a")], a=image(part("one")))
    sealed = seal(cut(made.plan, None, 0))
    archive = Archive(tmp_path / "exports")
    archive.keep(sealed, None)
    write_receipt(tmp_path / "r", sealed, "ship", 100.0)
    write_digests(tmp_path / "i", InventoryHeader("ship", 86400.0), [digest("one")])
    said = spoken(sealed.name)
    for given_, kind in ((str(tmp_path / "r"), "receipt"), (said, "receipt"), (said.replace(" ", ""), "receipt")):
        with open_bases([given_], archive) as found:
            assert digest("one") in found
            assert digest("two") not in found
            assert [(base.kind, base.name) for base in found.bases] == [(kind, sealed.name)]
    with open_bases([str(tmp_path / "i")], archive) as found:
        assert digest("one") in found
        assert digest("a") not in found
        assert found.bases[0].label == "the inventory of ship of 1970-01-02"
    wrong = f"{said[:-1]}{(int(said[-1]) + 1) % 10}"
    with pytest.raises(BundleError, match="read out again"):
        open_bases([wrong], archive)


def test_the_archive_keeps_the_newest_plans_and_tells_one_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KEPT == 200
    monkeypatch.setattr("sync.bundle.archive.KEPT", 2)
    archive = Archive(tmp_path / "exports")
    made = [seal(cut(draft([top("a", tag)], a=image(part("one"))).plan, None, 0)) for tag in ("1", "2", "3")]
    for number, sealed in enumerate(made):
        archive.keep(sealed, b"signature")
        if number < 2:
            (archive.folder / f"{sealed.name.hex}.plan").touch()
    assert len(archive.plans()) == 2
    assert len(list(archive.folder.iterdir())) == 4
    assert archive.find(made[2].name[:20]) == (made[2], b"signature")
    path = archive.folder / f"{made[2].name.hex}.plan"
    path.write_bytes(made[1].body)
    with pytest.raises(BundleError, match="damaged"):
        archive.find(str(made[2].name))


def cli(tmp_path: Path, *words: str) -> tuple[int, str]:
    """Run `entrepot export` in this process."""
    done = CliRunner().invoke(main, ["export", "--data", str(tmp_path / "data"), *words])
    return done.exit_code, done.output


def test_the_command_tells_what_is_wrong_with_the_request_from_what_cannot_be_done(tmp_path: Path) -> None:
    target = ("-o", str(tmp_path / "site.tar"), "--offline")
    for words, said in (
        (("App:1",), "App"),
        ((), "nothing was named"),
        (("app:1", "--platform", "linux"), "platform"),
        (("app:1", "--split-size", "many"), "not a size"),
        (("--recut", "0"), "counted from 1"),
    ):
        code, output = cli(tmp_path, *target, *words)
        assert (code, said in output) == (2, True), output
    code, output = cli(tmp_path, *target, "app:1")
    assert (code, "nothing to export" in output, "docker.io/library/app:1" in output) == (1, True, True), output
    code, output = cli(tmp_path, *target, "--recut", "1")
    assert (code, "no plan to make volumes of anew" in output) == (1, True), output
    code, output = cli(tmp_path, "-o", str(tmp_path / "gone" / "site.tar"), "app:1")
    assert (code, "there is no folder" in output) == (1, True), output


def test_a_full_disk_ends_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "site.tar.partial")

    monkeypatch.setattr(exporting, "export", full)
    code, output = cli(tmp_path, "-o", str(tmp_path / "site.tar"), "app:1")
    assert code == 1
    assert "site.tar.partial: No space left on device: make room there; the same command goes on" in output
