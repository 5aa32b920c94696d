"""Which tags are meant: globs (`latest`, `3.*`) and ranges of versions (`>=3.18 <4`, `~1.2`, `^1.2`, `3.x`). Pure.

A tag is a version where it begins with numbers: `3`, `v3.18`, `24.04`, `1.2.3.4`. Parts left out are 0, leading zeros
do not count, and there may be more than three parts. What follows is either a pre-release (`-rc.1`, `rc1`, `-beta2`:
one of PRE_RELEASES), which comes before its release as semver 2.0.0 §11 has it, or a variant (`-alpine`, `-1`,
`-slim-bookworm`), which is another image and comes neither before nor after.

A range chooses releases without a variant: `3.18.4-alpine` and `3.19.0-rc.1` are not in `>=3.18`. It chooses variants,
and no others, where a bound names one (`>=3.18-alpine`), and pre-releases where a bound names one (`>=1.2.0-rc.1`).
`<4` leaves out the pre-releases of 4. Numbers of six digits and more in the first place are dates and build numbers
(`20240131`): they are in a range that has such a number for a bound, and in no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from typing import Self

from semver import Version

from proxy.oci.globs import Glob

PRE_RELEASES = frozenset(
    {"a", "alpha", "b", "beta", "c", "canary", "cr", "dev", "ea", "m", "milestone", "nightly", "pre", "preview", "rc"}
    | {"snapshot", "unstable"}
)
DATE_DIGITS = 6

_OPERATORS = (">=", "<=", "!=", "==", ">", "<", "=", "~", "^")
_VERSION = re.compile(r"[vV]?(?P<numbers>[0-9]{1,18}(?:\.[0-9]{1,18}){0,7})(?P<rest>[-_.+A-Za-z][-_.+A-Za-z0-9]*)?")
_WILD = re.compile(r"[vV]?(?P<numbers>[0-9]{1,18}(?:\.[0-9]{1,18}){0,6})\.[xX]")
_WORDS = re.compile(r"[-_+]+")
_RUNS = re.compile(r"[0-9]+|[A-Za-z]+")
_WANTED = "expected a tag, a glob such as 3.*, or bounds such as >=3.18 <4, ~1.2, ^1.2"


@total_ordering
@dataclass(frozen=True, slots=True, eq=False)
class TagVersion:
    """The version that a tag writes. `numbers`: without zeros at the end; pre: normalized, empty for a release."""

    numbers: tuple[int, ...]
    pre: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the version that `text` is; None where it is none."""
        found = _VERSION.fullmatch(text)
        if found is None:
            return None
        rest = found["rest"] or ""
        if rest[:1].isalpha() and "." not in found["numbers"]:
            return None
        words = [word for word in (word.strip(".") for word in _WORDS.split(rest)) if word]
        pre = _pre_release(words[0]) if words else ""
        variant = "-".join(words[1:] if pre else words)
        if (rest and not words) or (rest[:1].isalpha() and not pre):
            return None
        return cls(_trimmed(map(int, found["numbers"].split("."))), pre, variant)

    @property
    def is_date(self) -> bool:
        """It begins with a date or a build number, and compares with none that does not."""
        return bool(self.numbers) and self.numbers[0] >= 10 ** (DATE_DIGITS - 1)

    @property
    def _order(self) -> tuple[tuple[int, ...], Version]:
        return self.numbers, Version(0, 0, 0, self.pre or None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TagVersion) and self._order == other._order

    def __lt__(self, other: TagVersion) -> bool:
        return self._order < other._order

    def __hash__(self) -> int:
        return hash((self.numbers, self.pre))


@dataclass(frozen=True, slots=True)
class _Bound:
    operator: str
    version: TagVersion

    def admits(self, offered: TagVersion) -> bool:
        version = self.version
        match self.operator:
            case ">=":
                return offered >= version
            case ">":
                return offered > version
            case "<=":
                return offered <= version
            case "<":
                return offered < version and (bool(version.pre) or offered.numbers != version.numbers)
            case "!=":
                return offered != version
        return offered == version


@dataclass(frozen=True, slots=True)
class TagChoice:
    """A parsed choice. `text` is what was written; a range chooses only tags that are versions."""

    text: str
    _glob: Glob | None
    _bounds: tuple[_Bound, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what was written. Raises ValueError."""
        if text.startswith(_OPERATORS):
            return cls(text, None, tuple(bound for word in text.split() for bound in _bounds(word)))
        if not text or "/" in text or any(char.isspace() for char in text):
            raise ValueError(f"{text[:160]!r} can be no tag: {_WANTED}")
        wild = _WILD.fullmatch(text)
        bounds = () if wild is None else _between(tuple(map(int, wild["numbers"].split("."))))
        return cls(text, Glob.parse(text), bounds)

    def matches(self, tag: str) -> bool:
        """Tell whether a tag is chosen."""
        if self._glob is not None and self._glob.matches(tag):
            return True
        if not self._bounds:
            return False
        version = TagVersion.parse(tag)
        return version is not None and self._is_kind(version) and all(bound.admits(version) for bound in self._bounds)

    def _is_kind(self, version: TagVersion) -> bool:
        named = [bound.version for bound in self._bounds if bound.operator != "!="]
        variants = {one.variant for one in named if one.variant} or {""}
        return (
            version.variant in variants
            and (not version.pre or any(one.pre for one in named))
            and version.is_date == any(bound.version.is_date for bound in self._bounds)
        )

    def __str__(self) -> str:
        return self.text


def _bounds(word: str) -> tuple[_Bound, ...]:
    operator = next((one for one in _OPERATORS if word.startswith(one)), "")
    written = word[len(operator) :]
    version = TagVersion.parse(written) if operator else None
    if version is None:
        raise ValueError(f"{word[:160]!r} is no bound of a version, such as >=3.18: {_WANTED}")
    if operator not in "~^":
        return (_Bound(operator, version),)
    found = _VERSION.fullmatch(written)
    parts = tuple(map(int, found["numbers"].split("."))) if found else version.numbers
    kept = min(len(parts), 2)
    if operator == "^":
        kept = next((place for place, part in enumerate(parts, 1) if part), len(parts))
    return _Bound(">=", version), _Bound("<", TagVersion(_next(parts[:kept]), variant=version.variant))


def _between(parts: tuple[int, ...]) -> tuple[_Bound, ...]:
    """Return the bounds of all versions that begin with `parts`."""
    return _Bound(">=", TagVersion(_trimmed(parts))), _Bound("<", TagVersion(_next(parts)))


def _next(parts: tuple[int, ...]) -> tuple[int, ...]:
    return (*parts[:-1], parts[-1] + 1)


def _trimmed(parts: Iterable[int]) -> tuple[int, ...]:
    numbers = list(parts)
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _pre_release(word: str) -> str:
    """Return `word` as semver writes a pre-release (`rc1`, `rc.01`: `rc.1`); empty where it is none."""
    runs = _RUNS.findall(word)
    if not runs or runs[0].lower() not in PRE_RELEASES or "".join(runs) != word.replace(".", ""):
        return ""
    return ".".join(str(int(run)) if run.isdigit() else run.lower() for run in runs)
