"""What commands ask about the catalog, of a real mirror over its control socket; and the same words without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from entrepot.cli.exits import CommandFailed
from entrepot.cli.ls import _text
from entrepot.cli.running import RunningMirror, find
from entrepot.config import SecretUrl
from entrepot.control import open_control
from entrepot.explaining import why
from entrepot.images import ImageLine, Pattern
from entrepot.mirror import Mirror, mirror
from entrepot.reasons import Known, explain
from entrepot.status import readiness
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadRequest, NotFound, Unavailable
from proxy.oci.names import Repository, Tag
from proxy.store.catalog import Proof
from proxy.store.inventory import DigestFacts, Inventory, TagState
from proxy.store.store import Store
from tests.admin.conftest import config_for
from tests.support.contents import blob, make_image, make_index
from tests.support.fake_upstream import FakeUpstream

HUB = "docker.io"
ALPINE = Repository(HUB, "library/alpine")
AMD = make_image([blob(3000), blob(70, seed=1)])
ARM = make_image([blob(5000, seed=2)], platform="linux/arm64")
INDEX = make_index({"linux/amd64": AMD, "linux/arm64": ARM})
OTHER = make_image([blob(900, seed=5)])
NAMES = frozenset({HUB, "ghcr.io"})


@pytest.fixture
async def control(running: Mirror, data: Path, upstream: FakeUpstream) -> AsyncIterator[RunningMirror]:
    INDEX.publish(upstream, "library/alpine", "3")
    OTHER.publish(upstream, "library/busybox", "1")
    async with open_control(running):
        found = await asyncio.to_thread(find, data)
        assert found is not None
        yield found


async def ask(control: RunningMirror, ask: str, **values: object) -> list[dict[str, Any]]:
    question = {"ask": ask, **values}
    return await asyncio.to_thread(lambda: [json.loads(line) for line in control.lines("/api/catalog", question)])


async def pull(control: RunningMirror, reference: str, *platforms: str) -> None:
    body = {"reference": reference, "platforms": list(platforms) or ["all"]}
    await asyncio.to_thread(lambda: list(control.lines("/api/pull", body)))


async def test_what_another_node_told_of_is_shown_as_not_here_yet(running: Mirror, control: RunningMirror) -> None:
    told = Descriptor(INDEX.media_type, INDEX.digest, 500)
    await running.store.catalog.put_tag(ALPINE, Tag("told"), told, 1e9)
    await running.store.catalog.prove(ALPINE, told.digest, Proof.FETCHED)
    (why,) = await ask(control, "why", reference="alpine:told")
    assert (why["served"], why["state"]) == (False, None)
    assert "it is known of, and its bytes have never been here" in why["because"]
    image, end = await ask(control, "ls", pattern="alpine")
    assert (image["state"], image["stored"], end["images"]) == ("absent", 0, 1)
    assert "not here yet" in _text(msgspec.convert(image, ImageLine), 1e9, "local")
    (failed,) = await ask(control, "inspect", reference="alpine:told")
    assert "known of, and not here yet" in failed["message"]


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("*", "docker.io/library/alpine:3", None),
        ("alpine", "docker.io/library/alpine:3", "docker.io/library/alpine-glibc:3"),
        ("alp*", "docker.io/library/alpine:3", "docker.io/me/alpine:3"),
        ("library/*:3.*", "docker.io/library/alpine:3.20", "docker.io/library/alpine:latest"),
        ("ghcr.io/**", "ghcr.io/a/b/c:1", "docker.io/a/b/c:1"),
        ("ghcr.io", "ghcr.io/a/b/c:1", "docker.io/a/b/c:1"),
        ("ghcr.io/*", "ghcr.io/a:1", "ghcr.io/a/b:1"),
        ("**/alpine", "ghcr.io/mirrors/alpine:1", "ghcr.io/alpine/mirrors:1"),
        ("me/app", "docker.io/me/app:1", "ghcr.io/me/app:1"),
    ],
)
def test_patterns_mean_what_references_and_globs_do(text: str, matching: str, other: str | None) -> None:
    pattern = Pattern.parse(text, NAMES, HUB)

    def means(reference: str) -> bool:
        upstream, _, rest = reference.partition("/")
        path, _, tag = rest.partition(":")
        return pattern.wants(Repository(upstream, path)) and pattern.shows(tag, "sha256:0")

    assert means(matching)
    assert other is None or not means(other)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(BadRequest, match="names no images"):
        Pattern.parse("a//*", NAMES, HUB)


async def test_ls_lists_what_was_pulled_and_how_whole_it_is(control: RunningMirror) -> None:
    await pull(control, "alpine:3", "linux/arm64")
    await pull(control, "busybox:1")
    *images, end = await ask(control, "ls")
    assert end == {"event": "done", "images": 2}
    assert [(image["reference"], image["state"]) for image in images] == [
        ("docker.io/library/alpine:3", "servable"),
        ("docker.io/library/busybox:1", "complete"),
    ]
    assert (await ask(control, "ls", pattern="busy*"))[0]["reference"] == "docker.io/library/busybox:1"
    assert await ask(control, "ls", pattern="quay.io/**") == [{"event": "done", "images": 0}]


async def test_inspect_shows_the_tree_of_an_index_and_what_of_it_is_missing(
    running: Mirror, control: RunningMirror
) -> None:
    await pull(control, "alpine:3", "linux/arm64")
    (found,) = await ask(control, "inspect", reference="alpine:3")
    assert (found["digest"], found["kind"], found["tags"]) == (INDEX.digest, "index", ["docker.io/library/alpine:3"])
    assert found["origin"] == running.store.catalog.region
    states = {child["platform"]: child["state"] for child in found["children"]}
    assert states == {"linux/amd64": "absent", "linux/arm64": "complete"}
    (arm,) = (child for child in found["children"] if child["platform"] == "linux/arm64")
    assert [child["role"] for child in arm["children"]] == ["config", "layer"]
    (unknown,) = await ask(control, "inspect", reference="nothing:1")
    assert "entrepot pull docker.io/library/nothing:1" in unknown["message"]


async def test_pins_are_told_with_what_they_keep_and_survive_a_pull(control: RunningMirror) -> None:
    (pinned,) = await ask(control, "pin", reference="alpine:3")
    assert (pinned["pinned"], pinned["changed"], pinned["state"]) == (True, True, None)
    await pull(control, "alpine:3")
    (pinned,) = await ask(control, "pin", reference="alpine:3")
    assert (pinned["changed"], pinned["state"], pinned["digest"]) == (False, "complete", INDEX.digest)
    assert (await ask(control, "ls"))[0]["pinned"]
    assert (await ask(control, "unpin", reference="alpine:3"))[0]["changed"]
    assert not (await ask(control, "ls"))[0]["pinned"]


async def test_a_removed_tag_is_fetched_anew_when_it_is_asked_for(
    control: RunningMirror, running: Mirror, upstream: FakeUpstream
) -> None:
    await pull(control, "alpine:3")
    (removed,) = await ask(control, "rm", reference="alpine:3")
    assert removed["removed"] == ["docker.io/library/alpine:3"]
    (why,) = await ask(control, "why", reference="alpine:3")
    assert (why["removed"], why["served"]) == (True, False)
    OTHER.publish(upstream, "library/alpine", "3")
    served = await running.cache.manifest(ALPINE, Tag("3"))
    assert served.descriptor.digest == OTHER.digest


async def test_a_removed_digest_frees_what_no_other_image_needs(control: RunningMirror, running: Mirror) -> None:
    await pull(control, "busybox:1")
    await pull(control, "alpine:3")
    before = (await running.store.stats()).bytes
    (removed,) = await ask(control, "rm", reference=f"busybox@{OTHER.digest}")
    assert removed["removed"] == [f"docker.io/library/busybox@{OTHER.digest}", "docker.io/library/busybox:1"]
    freed = len(OTHER.body) + sum(map(len, OTHER.blobs))
    assert (await running.store.stats()).bytes == before - freed
    assert (await ask(control, "ls"))[0]["state"] == "complete"


async def test_bytes_that_another_repository_has_stay_when_one_removes_them(
    control: RunningMirror, running: Mirror, upstream: FakeUpstream
) -> None:
    OTHER.publish(upstream, "library/alpine", "same")
    await pull(control, "busybox:1")
    await pull(control, "alpine:same")
    await ask(control, "rm", reference=f"busybox@{OTHER.digest}")
    record = await running.store.catalog.blob(Digest(OTHER.digest))
    assert record is not None
    assert record.complete


async def test_what_is_pinned_is_not_removed_and_a_glob_needs_force(control: RunningMirror) -> None:
    await pull(control, "busybox:1")
    await pull(control, "alpine:3")
    await ask(control, "pin", reference="alpine:3")
    for digest in (INDEX.digest, AMD.digest, Digest.of(AMD.blobs[1])):
        (refused,) = await ask(control, "rm", reference=f"alpine@{digest}")
        assert refused["refused"][0]["pins"] == ["docker.io/library/alpine:3"]
    (failed,) = await ask(control, "rm", reference="**")
    assert "--force" in failed["message"]
    (removed,) = await ask(control, "rm", reference="**", force=True)
    assert [image["reference"] for image in removed["refused"]] == ["docker.io/library/alpine:3"]
    assert "docker.io/library/busybox:1" in removed["removed"]
    assert [line["reference"] for line in (await ask(control, "ls"))[:-1]] == ["docker.io/library/alpine:3"]
    (unknown,) = await ask(control, "rm", reference="busybox:1")
    assert "nothing to remove" in unknown["message"]


async def test_why_tells_what_is_missing_and_who_would_be_asked(control: RunningMirror, upstream: FakeUpstream) -> None:
    await pull(control, "alpine:3", "linux/arm64")
    (why,) = await ask(control, "why", reference="alpine:3")
    assert (why["served"], why["state"], why["sources"]) == (True, "servable", [upstream.url])
    assert [missing["digest"] for missing in why["missing"]] == [AMD.digest]
    (why,) = await ask(control, "why", reference=str(Digest.of(ARM.blobs[1])))
    assert why["served"] is None
    assert why["needed_by"] == ["docker.io/library/alpine:3"]
    assert why["named_by"] == [ARM.digest]
    assert [member["proof"] for member in why["memberships"]] == ["fetched"]


async def test_why_tells_that_the_upstream_refused_a_tag(control: RunningMirror, running: Mirror) -> None:
    await pull(control, "alpine:3")
    await running.store.catalog.deny_tag(ALPINE, Tag("3"), 4e9)
    (why,) = await ask(control, "why", reference="alpine:3")
    assert (why["served"], why["denied_at"]) == (False, 4e9)
    assert "no such tag" in why["because"][0]


async def test_why_names_what_was_set_aside(control: RunningMirror, running: Mirror, data: Path) -> None:
    await pull(control, "busybox:1")
    layer = Digest.of(OTHER.blobs[1])
    path = data / "blobs" / "sha256" / layer.hex[:2] / layer.hex
    path.chmod(0o600)
    await asyncio.to_thread(path.write_bytes, b"wrong")
    assert await running.store.open_blob(layer) is None
    (why,) = await ask(control, "why", reference=str(layer))
    assert (why["state"], [name.partition(".")[0] for name in why["quarantined"]]) == ("absent", [layer.hex])


async def test_why_tells_what_the_upstream_said_a_moment_ago(control: RunningMirror, running: Mirror) -> None:
    with pytest.raises(NotFound):
        await running.cache.manifest(ALPINE, Tag("never"))
    (why,) = await ask(control, "why", reference="alpine:never")
    assert (why["served"], "said a moment ago" in why["because"][0]) == (False, True)


async def test_why_names_the_rule_that_bars_a_repository(upstream: FakeUpstream, data: Path) -> None:
    plain = config_for(upstream, data)
    (one,) = plain.upstreams
    config = type(plain)(data=data, upstreams=(type(one)(name=one.name, url=one.url, deny=("library/*",)),))
    async with mirror(config) as made, open_control(made):
        found = await asyncio.to_thread(find, data)
        assert found is not None
        (why,) = await ask(found, "why", reference="alpine:3")
    assert (why["served"], "denies library/*" in why["because"][0]) == (False, True)


def known(**changes: Any) -> Known:
    facts = DigestFacts(state="complete", kind="image", closure=(10, 10), proofs=((str(ALPINE), "fetched", 1.0),))
    tag = TagState(OTHER.digest, 1.0, 1.0, None)
    default = Known(
        f"{ALPINE}:3", ALPINE, Digest(OTHER.digest), tag, facts, False, False, (), None, ("https://up",), (), False
    )
    return replace(default, **changes)


PUBLIC = DigestFacts(state="complete", closure=(1, 1), public=True)


@pytest.mark.parametrize(
    ("facts", "served"),
    [
        (known(), True),
        (known(tag=None, digest=None, facts=DigestFacts()), False),
        (known(facts=DigestFacts()), False),
        (known(facts=replace(PUBLIC, public=False)), False),  # P43
        (known(facts=PUBLIC), False),  # P43
        (known(facts=PUBLIC, named=True), True),  # P43
        (known(facts=replace(known().facts, state="partial")), True),
        (known(facts=replace(known().facts, state="partial"), offline=True), False),
        (known(facts=replace(known().facts, state="partial"), failing=True), False),  # P27
        (known(failing=True), True),
        (known(tag=TagState(OTHER.digest, 1.0, 1.0, 2.0)), False),  # P44
        (known(repository=None, tag=None), None),
    ],
)
def test_the_verdict_is_what_a_client_would_meet(facts: Known, served: bool | None) -> None:
    assert explain(facts).served is served


PARTIAL = replace(known().facts, state="partial", missing=((OTHER.digest, 5),))
NEAR: dict[str, Any] = {"near": ("the other nodes of the fleet", "s3://bucket")}


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            known(facts=DigestFacts(), **NEAR),
            "from the other nodes of the fleet or s3://bucket, or else from docker.io",
        ),
        (known(facts=DigestFacts(), offline=True, **NEAR), "s3://bucket, if it is there: the mirror is offline"),
        (known(facts=DigestFacts(), failing=True, **NEAR), "s3://bucket, if it is there, as docker.io fails"),
        (known(facts=PARTIAL, failing=True, **NEAR), "served only while others have what it lacks"),
        (known(facts=PARTIAL, **NEAR), "served in part"),
        (known(tag=None, digest=None, facts=DigestFacts(), offline=True, **NEAR), "not served: the mirror is offline"),
    ],
)
def test_what_is_not_here_is_had_from_the_fleet_and_the_bucket_first(facts: Known, words: str) -> None:
    assert words in explain(facts).because[0]


async def test_the_nodes_of_a_fleet_and_its_bucket_are_among_the_sources(upstream: FakeUpstream, data: Path) -> None:
    config = config_for(upstream, data)
    (one,) = config.upstreams
    shared = type(config)(data=data, upstreams=(one,), redis=SecretUrl("redis://u:hidden@r"), store="s3://bucket")

    async def nowhere(repository: Repository, digest: Digest) -> bool:
        return False

    store = await Store.open(data)
    try:
        inventory = Inventory(store.catalog)
        told = await why(inventory, shared, ALPINE, Tag("3"), nowhere, None, None)
    finally:
        await store.close()
    assert told.sources == ("the other nodes of the fleet", "s3://bucket", one.url)


def test_the_last_error_of_the_upstream_is_among_the_reasons() -> None:
    assert any("no route" in line for line in explain(known(errors=("up: no route",))).because)


async def test_a_backup_tells_how_far_it_is_and_where_it_lies(
    control: RunningMirror, data: Path, tmp_path: Path
) -> None:
    await pull(control, "busybox:1")
    *progress, done = await ask(control, "backup")
    assert done["file"] == str(data / "catalog.backup.sqlite")
    assert progress[-1]["done"] == progress[-1]["total"] == done["size"]
    (*_, done) = await ask(control, "backup", file=str(tmp_path / "copy.sqlite"))
    assert (tmp_path / "copy.sqlite").stat().st_size == done["size"]


async def test_a_backup_never_lands_on_the_mirrors_own_files(control: RunningMirror, data: Path) -> None:
    for place in (data / "catalog.sqlite", data / "run" / "x", Path("relative.sqlite"), data):
        (failed,) = await ask(control, "backup", file=str(place))
        assert (failed["event"], failed["usage"]) == ("error", True), place


async def test_what_is_no_question_is_refused(control: RunningMirror) -> None:
    with pytest.raises(CommandFailed, match="400"):
        await ask(control, "eat", reference="alpine:3")


async def test_a_mirror_whose_catalog_was_lost_is_degraded_until_its_blobs_are_adopted(
    upstream: FakeUpstream, data: Path
) -> None:
    INDEX.publish(upstream, "library/alpine", "3")
    config = config_for(upstream, data)
    async with mirror(config) as made:
        await made.cache.manifest(ALPINE, Tag("3"))
    await asyncio.to_thread((data / "catalog.sqlite").unlink)
    offline = type(config)(data=data, upstreams=config.upstreams, offline=True)
    async with mirror(offline) as made:
        made.state = "ready"
        (reason,) = readiness(made).reasons
        assert "the catalog was missing" in reason
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "rescan")
        await asyncio.wait([task], timeout=5)
        assert readiness(made).status == "ready"
        assert (await made.store.stats()).manifests == 1
        with pytest.raises(Unavailable, match="offline"):  # P43
            await made.cache.manifest(ALPINE, Digest(INDEX.digest))
