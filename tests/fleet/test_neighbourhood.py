"""Who is a neighbour, and how a node's URL is written."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from proxy.cache.near import TagSaid
from proxy.fleet.protocol import Neighbourhood, Says, decode_tag, encode_tag, kind_of, node_name, origin
from proxy.oci.descriptor import Descriptor
from proxy.oci.digest import Digest
from proxy.oci.errors import BadContent, RegistryError

OWN = "http://10.1.2.3:5000"


@pytest.mark.parametrize(
    ("own", "near", "far"),
    [
        ("http://10.1.2.3:5000", "http://10.1.99.1:80", "http://10.2.0.1:5000"),
        ("https://[fd00:1:2::3]", "https://[fd00:1:2:ffff::1]:5000", "https://[fd00:1:3::1]"),
        ("http://127.0.0.1:5000", "http://127.9.9.9:1", "http://10.0.0.1:5000"),
        ("http://[::1]:5000", "http://[::1]:9", "http://[::2]:9"),
        ("https://a.mirror.example", "https://b.mirror.example:444", "https://mirror.example"),
        ("https://a.mirror.example", "https://A.Mirror.Example", "https://x.a.mirror.example"),
        ("http://node-1:5000", "http://node-2:5000", "http://node-2.example:5000"),
        ("http://node-1:5000", "http://node-2:5000", "http://10.0.0.1:5000"),
    ],
)
def test_without_patterns_those_are_near_who_live_alike(own: str, near: str, far: str) -> None:
    neighbourhood = Neighbourhood.parse((), own)
    assert neighbourhood.admits(own)
    assert neighbourhood.admits(near)
    assert not neighbourhood.admits(far)


def test_patterns_are_all_there_is() -> None:
    neighbourhood = Neighbourhood.parse(("192.0.2.0/24", "192.168.7.7", "node-*.rack.example"), OWN)
    for url in (
        "http://192.0.2.9",
        "http://192.168.7.7:1",
        "https://node-.rack.example",
        "http://NODE-12.rack.example",
    ):
        assert neighbourhood.admits(url), url
    for url in (OWN, "http://192.168.7.8", "http://node-1.x.rack.example", "http://node-1.rack.example.evil.test"):
        assert not neighbourhood.admits(url), url


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@10.1.2.4:5000",
        "http://10.1.2.4:5000/path",
        "http://10.1.2.4:5000?query",
        "http://10.1.2.4:5000#fragment",
        "ftp://10.1.2.4",
        "http://10.1.2.4:99999",
        "http://10.1.2.4:0",
        "http://10.1.2.4:x",
        "http://[10.1.2.4",
        "http://10.1.2.4 .evil.test",
        "http://0x0a010204",
        "http://167837188:5000",
        "http://10.1.516",
        "http://",
        "10.1.2.4:5000",
        "",
    ],
)
def test_what_is_no_url_of_a_node_is_no_neighbour(url: str) -> None:
    assert not Neighbourhood.parse(("0.0.0.0/0", "*", "*.*", "*.*.test"), OWN).admits(url)
    with pytest.raises(ValueError, match=r".+"):
        origin(url)


def test_an_address_is_judged_as_it_is_written() -> None:
    assert not Neighbourhood.parse(("10.0.0.0/8",), OWN).admits("http://[::ffff:10.0.0.1]:5000")


def test_a_node_has_one_name() -> None:
    assert origin("HTTP://Node-1:80/") == origin("http://node-1") == "http://node-1:80"
    assert node_name("https://[FD00::1]") == "[fd00::1]:443"


def test_a_tag_is_told_as_it_was_heard() -> None:
    found = Descriptor("application/vnd.oci.image.index.v1+json", Digest.of(b"x"), 7)
    for said in (TagSaid(found, "", 1.5), TagSaid(None, "gone: “x”", 0.0)):
        assert decode_tag(encode_tag(said)) == said


@given(st.binary(max_size=60))
@example(b'{"found":null,"message":"\xff","age":0}')
def test_no_bytes_break_the_reader_of_tags(body: bytes) -> None:
    with pytest.raises(RegistryError):
        decode_tag(body)


@given(st.booleans(), st.booleans(), st.booleans(), st.none() | st.integers(0, 2**62), st.text(max_size=30))
def test_what_an_answer_says_fits_in_a_header(
    proven: bool, public: bool, servable: bool, size: int | None, kind: str
) -> None:
    says = Says(proven, public, servable, size, kind)
    text = says.encode()
    assert text.isascii()
    assert text.isprintable()
    assert Says.decode(text) == says


def test_what_an_answer_says_unreadably_is_refused() -> None:
    with pytest.raises(BadContent):
        Says.decode('{"proven":"yes"}')


def test_kinds_are_few() -> None:
    assert kind_of("/sync/v1/changes?since=x") == "sync"
    assert kind_of("/fleet/v1/blobs/sha256:00") == "blob"
    assert kind_of("/fleet/v9/whatever") == "other"
