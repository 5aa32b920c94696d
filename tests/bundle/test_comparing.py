"""What differs between bundles, inventories and receipts."""

from __future__ import annotations

import msgspec

from proxy.oci.digest import Digest
from sync.bundle.comparing import Amount, Moved, Side, compare, side_of
from sync.bundle.plan import Required
from tests.bundle.writing import plan_of
from tests.support.contents import Image, blob, make_image

OLD = make_image([blob(100, 1), blob(50, 2)])
NEW = make_image([blob(100, 1), blob(70, 3)])
ALPINE, BUSYBOX, FEDORA = (f"docker.io/library/{name}:1" for name in ("alpine", "busybox", "fedora"))


def of(*images: tuple[str, Image]) -> Side:
    return side_of("a bundle", plan_of(images)[0])


def test_images_are_new_gone_or_moved_and_blobs_are_counted_where_they_are() -> None:
    found = compare(of((ALPINE, OLD), (BUSYBOX, OLD)), of((ALPINE, NEW), (FEDORA, OLD)))
    assert (found.new, found.gone) == ((FEDORA,), (BUSYBOX,))
    assert found.moved == (Moved(ALPINE, OLD.digest, NEW.digest),)
    size = len(NEW.body) + len(NEW.blobs[0]) + 70
    assert (found.only_a, found.only_b) == (Amount(0, 0, 0), Amount(3, size, 0))
    assert found.both == Amount(4, len(OLD.body) + len(OLD.blobs[0]) + 150, 0)


def test_what_a_thin_bundle_stands_on_belongs_to_it() -> None:
    plan, _, _ = plan_of([(ALPINE, OLD)])
    *brought, last = plan.blobs
    thin = msgspec.structs.replace(plan, blobs=tuple(brought), requires=(Required(last.digest, last.size, 0),))
    found = compare(of((ALPINE, OLD)), side_of("thin", thin))
    assert (found.only_a.blobs, found.only_b.blobs, found.both.blobs) == (0, 0, len(plan.blobs))


def test_of_an_inventory_an_image_is_known_by_its_manifest_and_sizes_are_those_of_the_other_side() -> None:
    stranger = str(Digest.of(b"stranger"))
    held = sorted([str(OLD.digest), stranger])
    found = compare(Side("inventory", held), of((ALPINE, OLD), (BUSYBOX, NEW)))
    assert (found.new, found.gone, found.moved) == ((BUSYBOX,), (), ())
    assert found.only_a == Amount(1, 0, 1)
    assert found.both == Amount(1, len(OLD.body), 0)
    assert compare(of((ALPINE, OLD), (BUSYBOX, NEW)), Side("inventory", held)).gone == (BUSYBOX,)
    assert compare(Side("one", held), Side("two", held[:1])).only_a == Amount(1, 0, 1)
