"""For how long a digest that a tag had before is held back, by who saw it and whose the tag is."""

from __future__ import annotations

import pytest

from proxy.cache.homes import RETURN_SECONDS, Heard, cooldown_of
from proxy.oci.descriptor import Descriptor
from proxy.store.records import TagRecord
from tests.store.contents import TYPES, digest

BACK = Descriptor(TYPES["image"], digest("back"), 3)


def record(origin: str) -> TagRecord:
    return TagRecord(Descriptor(TYPES["image"], digest("now"), 3), 7, origin, 1.0, 1.0, past=(BACK.digest,))


@pytest.mark.parametrize("origin", ["eu", "", "local"])  # the last two: seen before this region had a name
def test_the_main_host_is_believed_at_once_about_what_no_other_region_saw(origin: str) -> None:
    assert cooldown_of(record(origin), Heard(BACK, 9.0, by_main=True), "eu", 5.0) == 5.0


@pytest.mark.parametrize(("origin", "by_main"), [("us", True), ("eu", False), ("local", False)])
def test_what_may_lag_behind_is_held_back(origin: str, by_main: bool) -> None:
    assert cooldown_of(record(origin), Heard(BACK, 9.0, by_main=by_main), "eu", 5.0) == RETURN_SECONDS


def test_what_the_tag_never_was_waits_for_the_cooldown_alone() -> None:
    new = Descriptor(TYPES["image"], digest("new"), 3)
    assert cooldown_of(record("us"), Heard(new, 9.0), "eu", 5.0) == 5.0
