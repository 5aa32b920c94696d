"""Accept lines as clients send them (P19-P21)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from proxy.oci import media
from tests.support.contents import DOCKER_LAYER, OCI_LAYER

DOCKERD = [media.DOCKER_MANIFEST, media.DOCKER_LIST, media.OCI_INDEX, media.OCI_MANIFEST]
CONTAINERD = [", ".join([media.DOCKER_MANIFEST, media.DOCKER_LIST, media.OCI_MANIFEST, media.OCI_INDEX, "*/*"])]


@given(st.permutations(DOCKERD), st.sampled_from(sorted(media.MANIFESTS)))
def test_lines_and_lists_are_read_alike(lines: list[str], media_type: str) -> None:  # P20
    assert media.parse_accept(lines) == media.parse_accept([",".join(lines)])
    assert media.accepts(lines, media_type)
    assert not media.excludes(lines, media_type)


def test_full_accept_set_has_every_manifest_type() -> None:  # P19
    assert {item.pattern for item in media.parse_accept([media.ACCEPT])} == media.MANIFESTS
    assert len(media.MANIFESTS) == 4


@pytest.mark.parametrize(
    ("lines", "media_type", "accepted", "excluded"),
    [
        ([], media.OCI_INDEX, True, False),
        ([""], media.OCI_INDEX, True, False),
        (CONTAINERD, "application/vnd.example+json", True, False),
        ([media.DOCKER_MANIFEST], media.OCI_INDEX, False, True),
        ([media.DOCKER_MANIFEST.upper()], media.DOCKER_MANIFEST, True, False),
        ([f"{media.DOCKER_MANIFEST}; q=0.5; x=y"], media.DOCKER_MANIFEST, True, False),
        ([f"{media.DOCKER_MANIFEST};q=0"], media.DOCKER_MANIFEST, False, True),
        ([f"{media.DOCKER_MANIFEST};Q=0.000"], media.DOCKER_MANIFEST, False, True),
        ([f"{media.DOCKER_MANIFEST};q=high"], media.DOCKER_MANIFEST, True, False),
        (["application/*"], media.OCI_INDEX, True, False),
        (["text/*"], media.OCI_INDEX, False, False),
        ([f"*/*, {media.OCI_INDEX};q=0"], media.OCI_INDEX, False, False),
    ],
)
def test_accept_decides_about_a_cached_type(
    lines: list[str], media_type: str, accepted: bool, excluded: bool
) -> None:  # P21
    assert media.accepts(lines, media_type) is accepted
    assert media.excludes(lines, media_type) is excluded


@given(st.lists(st.text()), st.sampled_from(sorted(media.MANIFESTS)))
def test_hostile_accept_never_raises_and_excluded_is_never_accepted(lines: list[str], media_type: str) -> None:
    assert not (media.excludes(lines, media_type) and media.accepts(lines, media_type))


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, None),
        ("", None),
        ("Application/JSON; charset=utf-8", "application/json"),
        (media.OCI_INDEX, media.OCI_INDEX),
        ("application/json\r\nX-Evil: 1", None),
        ("json", None),
        ("a/" + "b" * 200, None),
    ],
)
def test_essence_is_a_media_type_that_may_be_sent_on(content_type: str | None, expected: str | None) -> None:  # P42
    assert media.essence(content_type) == expected


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (media.DOCKER_FOREIGN_LAYER, True),
        (media.OCI_NONDISTRIBUTABLE_LAYER, True),
        (f"{media.OCI_NONDISTRIBUTABLE_LAYER}+zstd", True),
        (OCI_LAYER, False),
        (DOCKER_LAYER, False),
    ],
)
def test_foreign_layers_are_known_by_their_type(media_type: str, expected: bool) -> None:  # P40
    assert media.is_nondistributable(media_type) is expected
