"""After any sequence of commits and losses the incremental numbers equal those counted from scratch."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.oci.manifests import Child, ParsedManifest
from proxy.store import closure
from proxy.store.queries import BLOB
from proxy.store.schema import connect
from proxy.store.writer import Transaction
from tests.store.contents import child, digest, parsed

LEAVES = [f"leaf{number}" for number in range(3)]
IMAGES = [f"image{number}" for number in range(3)]
INDEXES = [f"index{number}" for number in range(2)]
OUTER = ["outer"]

children_of = {
    "image": st.lists(st.tuples(st.sampled_from(LEAVES), st.booleans()), max_size=4),
    "index": st.lists(st.tuples(st.sampled_from(IMAGES + LEAVES[:1]), st.just(True)), max_size=3),
    "outer": st.lists(st.tuples(st.sampled_from(INDEXES + IMAGES), st.just(True)), max_size=4),
}


class Closure(RuleBasedStateMachine):
    """`named` is the model: what each manifest requires; `present` what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.connection = connect(Path(self.folder.name) / "catalog.sqlite")
        self.connection.execute("PRAGMA synchronous = OFF")
        self.transaction = Transaction(self.connection)
        self.named: dict[str, ParsedManifest] = {}
        self.present: set[str] = set()

    def teardown(self) -> None:
        self.connection.close()
        self.folder.cleanup()

    @rule(name=st.sampled_from(LEAVES + IMAGES + INDEXES))
    def store_blob(self, name: str) -> None:
        self._store(name, None)

    @rule(name=st.sampled_from(IMAGES), children=children_of["image"])
    def store_image(self, name: str, children: list[tuple[str, bool]]) -> None:
        self._store(name, parsed("image", *(child(leaf, required=required) for leaf, required in children)))

    @rule(name=st.sampled_from(INDEXES), children=children_of["index"])
    def store_index(self, name: str, children: list[tuple[str, bool]]) -> None:
        self._store(name, parsed("index", *(child(image, "manifest") for image, _ in children)))

    @rule(name=st.sampled_from(OUTER), children=children_of["outer"])
    def store_outer(self, name: str, children: list[tuple[str, bool]]) -> None:
        self._store(name, parsed("index", *(child(index, "manifest") for index, _ in children)))

    @rule(name=st.sampled_from(LEAVES + IMAGES + INDEXES + OUTER))
    def lose(self, name: str) -> None:
        changed: list[str] = []
        before = self._records()
        closure.lose_blob(self.transaction, digest(name), changed.extend)
        self.present.discard(name)
        self._check_told(before, changed)

    def _store(self, name: str, manifest: ParsedManifest | None) -> None:
        changed: list[str] = []
        before = self._records()
        closure.record_blob(
            self.transaction, digest(name), size=1, parsed=manifest, public=False, now=0.0, changed=changed.extend
        )
        if manifest is not None:
            self.named.setdefault(name, manifest)
        self.present.add(name)
        self._check_told(before, changed)

    def _records(self) -> dict[str, tuple[object, ...]]:
        digests = [row[0] for row in self.connection.execute("SELECT digest FROM blob")]
        return {name: self.connection.execute(BLOB, (name,)).fetchone() for name in digests}

    def _check_told(self, before: dict[str, tuple[object, ...]], changed: list[str]) -> None:
        for callback in self.transaction.take_callbacks():
            callback()
        after = self._records()
        assert {name for name, record in after.items() if before.get(name) != record} <= set(changed)

    def _required(self, name: str) -> set[str]:
        manifest = self.named.get(name)
        wanted: tuple[Child, ...] = manifest.children if manifest else ()
        return {str(entry.descriptor.digest) for entry in wanted if entry.required}

    def _complete(self, name: str) -> bool:
        names = {str(digest(other)): other for other in LEAVES + IMAGES + INDEXES + OUTER}
        return name in self.present and all(self._complete(names[other]) for other in self._required(name))

    @invariant()
    def incremental_equals_recomputed(self) -> None:
        names = {str(digest(other)): other for other in LEAVES + IMAGES + INDEXES + OUTER}
        statement = "SELECT digest, present, children, missing FROM blob"
        for stored, present, children, missing in self.connection.execute(statement).fetchall():
            name = names[stored]
            required = self._required(name)
            complete = [other for other in required if self._complete(names[other])]
            assert (bool(present), children) == (name in self.present, len(required))
            assert not present or missing == len(required) - len(complete)
            record = self.connection.execute(BLOB, (stored,)).fetchone()
            manifest = self.named.get(name)
            one_suffices = manifest is not None and manifest.kind == "index" and (bool(complete) or not required)
            assert bool(record[5]) == self._complete(name)
            assert bool(record[4]) == (self._complete(name) or (name in self.present and one_suffices))

    @invariant()
    def totals_equal_counted(self) -> None:
        counted = self.connection.execute(
            "SELECT count(*), coalesce(sum(size), 0), count(media_type) FROM blob WHERE present"
        ).fetchone()
        assert self.connection.execute("SELECT blobs, bytes, manifests FROM counter").fetchone() == counted


TestClosure = Closure.TestCase
TestClosure.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


def test_a_row_that_was_never_stored_is_not_lost(tmp_path: Path) -> None:
    connection: sqlite3.Connection = connect(tmp_path / "catalog.sqlite")
    closure.lose_blob(Transaction(connection), digest("never"), lambda changed: None)
    assert connection.execute("SELECT count(*) FROM blob").fetchone() == (0,)
    connection.close()
