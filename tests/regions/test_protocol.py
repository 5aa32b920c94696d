"""What a region says of a tag at its home, on the wire."""

from __future__ import annotations

import msgspec
import pytest

from proxy.cache.near import TagAtHome
from proxy.oci.errors import BadContent
from proxy.regions.protocol import decode_tag, encode_tag
from proxy.store.exchanged import Past, TagChange
from tests.regions.lab import SMALL, a_record

WAS = Past("sha256:" + "1" * 64, 0, 3, 0, "us-east", "application/x", 3, 1.0)
RECORD = msgspec.structs.replace(a_record("3.20", SMALL, 7), others=(WAS,))


def test_a_tag_is_read_as_it_was_written() -> None:
    said = TagAtHome(RECORD, 4.5, "us-east")
    assert decode_tag(encode_tag(said, "application/msgpack")) == said


@pytest.mark.parametrize(
    "wrong",
    [
        msgspec.structs.replace(RECORD, size=None),
        msgspec.structs.replace(RECORD, others=(msgspec.structs.replace(WAS, media_type=None),)),
    ],
)
def test_a_tag_that_does_not_say_what_it_is_is_refused(wrong: TagChange) -> None:
    with pytest.raises(BadContent, match="neither type nor size"):
        decode_tag(encode_tag(TagAtHome(wrong, 4.5, "us-east"), "application/msgpack"))
