"""Manifests of every kind are understood, and no bytes, however hostile, do more than raise a RegistryError."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from proxy.oci import media
from proxy.oci.descriptor import OCTET_STREAM, Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, ManifestUnknown, RegistryError
from proxy.oci.manifests import MAX_MANIFEST, Child, ParsedManifest, parse_manifest
from proxy.oci.platforms import Platform
from tests.support.contents import OCI_LAYER

OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
CONTENT_TYPES = (None, "application/json", "text/plain", media.OCI_MANIFEST, media.OCI_INDEX, "application/vnd.x+json")


def entry(name: str, media_type: str = OCI_LAYER, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(name.encode())), "size": len(name), **more}


def described(name: str, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, Digest.of(name.encode()), len(name))


def image(media_type: str = media.OCI_MANIFEST, config: str = media.OCI_CONFIG, **more: object) -> dict[str, Any]:
    layers = [entry("layer"), entry("zstd", OCI_LAYER_ZSTD)]
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": entry("config", config),
        "layers": layers,
        **more,
    }


def index(media_type: str = media.OCI_INDEX, **more: object) -> dict[str, Any]:
    manifests = [
        entry("amd64", media.OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
        entry("arm64", media.OCI_MANIFEST, platform={"os": "linux", "architecture": "arm64", "variant": "v8"}),
        entry("proof", media.OCI_MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
        entry("bare", media.OCI_MANIFEST),
    ]
    return {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests, **more}


def read(document: object, content_type: str | None) -> ParsedManifest:
    return parse_manifest(json.dumps(document).encode(), content_type)


@pytest.mark.parametrize(
    ("media_type", "config"), [(media.OCI_MANIFEST, media.OCI_CONFIG), (media.DOCKER_MANIFEST, media.DOCKER_CONFIG)]
)
def test_image_has_a_config_and_layers(media_type: str, config: str) -> None:
    parsed = read(image(media_type, config), media_type)
    assert parsed == ParsedManifest(
        media_type,
        "image",
        (
            Child(described("config", config), "config", None, True),
            Child(described("layer"), "layer", None, True),
            Child(described("zstd", OCI_LAYER_ZSTD), "layer", None, True),
        ),
        None,
        config,
    )


@pytest.mark.parametrize("media_type", [media.OCI_INDEX, media.DOCKER_LIST])
def test_index_has_manifests_with_their_platforms(media_type: str) -> None:  # P25: unknown/unknown too
    parsed = read(index(media_type), media_type)
    assert (parsed.media_type, parsed.kind, parsed.artifact_type) == (media_type, "index", None)
    assert [(child.role, child.required) for child in parsed.children] == [("manifest", True)] * 4
    assert [child.platform for child in parsed.children] == [
        Platform("linux", "amd64"),
        Platform("linux", "arm64", "v8"),
        Platform("unknown", "unknown"),
        None,
    ]
    assert parsed.children[0].descriptor == described("amd64", media.OCI_MANIFEST)


def test_subject_and_artifact_type_are_read() -> None:  # P12
    document = image(subject=entry("subject", media.OCI_MANIFEST), artifactType="application/spdx+json")
    parsed = read(document, media.OCI_MANIFEST)
    assert parsed.subject == described("subject", media.OCI_MANIFEST)
    assert (parsed.kind, parsed.artifact_type) == ("artifact", "application/spdx+json")
    attached = read(index(subject=entry("subject"), artifactType="a/b"), media.OCI_INDEX)
    assert (attached.subject, attached.artifact_type) == (described("subject"), "a/b")


def test_chart_is_an_artifact_of_its_config_type() -> None:  # P25
    parsed = read(image(config="application/vnd.cncf.helm.config.v1+json"), media.OCI_MANIFEST)
    assert (parsed.kind, parsed.artifact_type) == ("artifact", "application/vnd.cncf.helm.config.v1+json")
    assert len(parsed.children) == 3


def test_artifact_manifest_of_the_draft_has_blobs() -> None:
    document = {"mediaType": media.OCI_ARTIFACT, "artifactType": "a/b", "blobs": [entry("blob")]}
    parsed = read(document, media.OCI_ARTIFACT)
    assert (parsed.kind, parsed.artifact_type) == ("artifact", "a/b")
    assert parsed.children == (Child(described("blob"), "layer", None, True),)


@pytest.mark.parametrize(
    "layer",
    [
        entry("layer", media.DOCKER_FOREIGN_LAYER),
        entry("layer", media.OCI_NONDISTRIBUTABLE_LAYER + "+gzip"),
        entry("layer", urls=["https://vendor.example/layer"]),
    ],
)
def test_layer_kept_by_its_vendor_is_not_required(layer: dict[str, object]) -> None:  # P40
    parsed = read(image(layers=[layer, entry("own", urls=[])]), media.OCI_MANIFEST)
    assert [child.required for child in parsed.children] == [True, False, True]


@pytest.mark.parametrize("content_type", [None, "application/json", "text/plain; charset=utf-8", "nonsense"])
@pytest.mark.parametrize("document", [image(media.DOCKER_MANIFEST), image(), index(media.DOCKER_LIST), index()])
def test_vague_content_type_is_repaired_from_the_body(content_type: str | None, document: dict[str, Any]) -> None:
    assert read(document, content_type) == read(document, document["mediaType"])  # P23
    assert read(document, content_type).media_type == document["mediaType"]


@pytest.mark.parametrize("content_type", [None, "application/json"])
def test_body_without_a_type_is_known_by_its_structure(content_type: str | None) -> None:  # P23
    assert read(image(mediaType=None), content_type).media_type == media.OCI_MANIFEST
    assert read(index(mediaType=None), content_type).media_type == media.OCI_INDEX
    assert read({"schemaVersion": 2, "manifests": []}, content_type).children == ()


def test_type_in_the_body_counts_for_more_than_the_header() -> None:
    assert read(image(media.DOCKER_MANIFEST), media.OCI_INDEX).media_type == media.DOCKER_MANIFEST
    assert read(index(), "application/vnd.example+json").kind == "index"


def test_header_counts_where_the_body_says_nothing() -> None:
    assert read(image(mediaType=None), media.DOCKER_MANIFEST).media_type == media.DOCKER_MANIFEST
    assert read(index(mediaType=None), media.DOCKER_LIST).media_type == media.DOCKER_LIST


@pytest.mark.parametrize(
    ("body", "content_type", "media_type"),
    [
        (b"not JSON at all \xff", "application/vnd.example.thing", "application/vnd.example.thing"),
        (b'{"config": 5}', "application/vnd.example+json; x=y", "application/vnd.example+json"),
        (b'{"mediaType": "application/vnd.x+json", "layers": 1}', "application/json", "application/vnd.x+json"),
    ],
)
def test_unknown_type_passes_through_unread(body: bytes, content_type: str, media_type: str) -> None:  # P25
    assert parse_manifest(body, content_type) == ParsedManifest(media_type, "other", (), None, None)


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, media.DOCKER_SCHEMA1),
        ({"schemaVersion": 1, "fsLayers": []}, media.DOCKER_SCHEMA1_SIGNED),
        ({"schemaVersion": 1, "fsLayers": []}, "application/json"),
        ({"schemaVersion": 1}, None),
        ({"schemaVersion": 1, "fsLayers": []}, media.DOCKER_MANIFEST),
        ({"mediaType": media.DOCKER_SCHEMA1_SIGNED}, "text/plain"),
        (None, media.DOCKER_SCHEMA1),
    ],
)
def test_schema_1_is_unknown(document: object, content_type: str | None) -> None:  # P22
    with pytest.raises(ManifestUnknown, match="schema 1"):
        read(document, content_type)


@pytest.mark.parametrize("content_type", ["text/html", "Text/HTML; charset=utf-8"])
def test_web_page_is_bad_content(content_type: str) -> None:  # P23
    with pytest.raises(BadContent, match="web page") as caught:
        read(image(), content_type)
    assert caught.value.status == 502


def test_manifest_of_4_mib_is_the_largest() -> None:  # P45
    body = json.dumps(image()).encode()
    assert parse_manifest(body.ljust(MAX_MANIFEST), media.OCI_MANIFEST).kind == "image"
    with pytest.raises(BadContent, match="larger"):
        parse_manifest(body.ljust(MAX_MANIFEST + 1), media.OCI_MANIFEST)
    with pytest.raises(BadContent, match="larger"):
        parse_manifest(bytes(MAX_MANIFEST + 1), "application/vnd.example+json")


@pytest.mark.parametrize(
    "document",
    [
        image(manifests=[entry("x")]),
        index(layers=[entry("x")]),
        index(config=entry("x")),
    ],
)
def test_manifest_that_is_two_things_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(BadContent, match="contradicts"):
        read(document, document["mediaType"])


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        5,
        "text",
        {},
        {"errors": []},
        image() | {"config": None},
        image(layers={}),
        image(layers=[None]),
        image(layers=[{}]),
        image(layers=[entry("x") | {"size": -1}]),
        image(layers=[entry("x") | {"size": 2**63}]),
        image(layers=[entry("x") | {"size": "5"}]),
        image(layers=[entry("x") | {"digest": "sha256:../../etc/passwd"}]),
        image(layers=[entry("x") | {"digest": "md5:" + "a" * 32}]),
        image(layers=[entry("x") | {"urls": "https://x"}]),
        image(subject={"digest": "x"}),
        index(manifests=[entry("x") | {"platform": "linux"}]),
        image() | {"mediaType": 5},
    ],
)
@pytest.mark.parametrize("content_type", [None, media.OCI_MANIFEST])
def test_malformed_manifest_is_bad_content(document: object, content_type: str | None) -> None:
    with pytest.raises(BadContent):
        read(document, content_type)


def test_null_is_the_same_as_nothing() -> None:
    document = index(subject=None, artifactType=None, layers=None, config=None)
    document["manifests"][0].update(platform=None, urls=None)
    parsed = read(document, media.OCI_INDEX)
    assert parsed.subject is None
    assert parsed.children[0].platform is None
    assert read(image(layers=None), media.OCI_MANIFEST).children[0].role == "config"


def test_child_without_a_type_is_octets() -> None:
    layer = entry("x")
    del layer["mediaType"]
    assert read(image(layers=[layer]), media.OCI_MANIFEST).children[1].descriptor.media_type == OCTET_STREAM


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"x":' * 300_000,
        b'{"config":' * 300_000,
        b'{"annotations":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"config":{"digest":"x","size":1e999}}',
        b'{"config":{"digest":"x","size":' + b"9" * 10_000 + b"}}",
        b'{"mediaType":"\\ud800/x"}',
        b'{"mediaType":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"",
        b"\x00",
    ],
    ids=lambda body: body[:16],
)
def test_hostile_body_is_refused_or_passed_through_unread(body: bytes, content_type: str | None) -> None:
    if content_type == "application/vnd.x+json":
        assert parse_manifest(body, content_type).kind == "other"
    else:
        with pytest.raises(BadContent):
            parse_manifest(body, content_type)


def test_of_a_key_given_twice_the_last_counts() -> None:
    twice = json.dumps(image()).encode()[:-1] + b',"layers":[]}'
    assert [child.role for child in parse_manifest(twice, media.OCI_MANIFEST).children] == ["config"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["mediaType", "schemaVersion", "config", "layers", "manifests", "blobs", "subject", "artifactType", "fsLayers"]
)
TYPES = st.sampled_from([media.OCI_MANIFEST, media.OCI_INDEX, media.DOCKER_SCHEMA1, "application/vnd.x+json", "\r\n/"])
ENTRIES = st.builds(lambda name, extra: entry(name) | extra, st.text(), st.dictionaries(st.text(), json_values))
documents = st.dictionaries(KEYS, json_values | TYPES | ENTRIES | st.lists(ENTRIES))


@given(documents | json_values, st.sampled_from(CONTENT_TYPES) | st.text())
@example(image(), "text/html")
def test_any_document_is_understood_or_refused(document: object, content_type: str | None) -> None:
    try:
        parsed = read(document, content_type)
    except RegistryError:
        return
    assert media.essence(parsed.media_type) == parsed.media_type  # P42: it goes out in a header
    for child in parsed.children:
        assert Digest.parse(child.descriptor.digest)
        assert 0 <= child.descriptor.size < 2**63


@given(st.binary(), st.sampled_from(CONTENT_TYPES))
def test_any_bytes_are_understood_or_refused(body: bytes, content_type: str | None) -> None:
    with contextlib.suppress(ManifestUnknown, BadContent):
        parsed = parse_manifest(body, content_type)
        assert parsed.kind == "other" or (body.strip() == b"{}" and parsed.kind == "index")
        assert parsed.children == ()
