"""Which tags are meant: globs (`latest`, `3.*`) and ranges of versions (`>=3.18 <4`). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from semver import Version

from proxy.oci.globs import Glob

_OPERATORS = (">=", "<=", "!=", "==", ">", "<", "=")


@dataclass(frozen=True, slots=True)
class TagChoice:
    """A parsed choice. `text` is what was written; a range chooses only tags that are versions."""

    text: str
    _glob: Glob | None
    _bounds: tuple[tuple[str, Version], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what was written. Raises ValueError."""
        if not text.startswith(_OPERATORS):
            if "/" in text or " " in text:
                raise ValueError(f"{text[:160]!r} can be no tag")
            return cls(text, Glob.parse(text), ())
        bounds = []
        for word in text.split():
            operator = next((one for one in _OPERATORS if word.startswith(one)), None)
            version = version_of(word[len(operator) :]) if operator else None
            if operator is None or version is None:
                raise ValueError(f"{word[:160]!r} is no bound of a version, such as >=3.18")
            bounds.append(("==" if operator == "=" else operator, version))
        return cls(text, None, tuple(bounds))

    def matches(self, tag: str) -> bool:
        """Tell whether a tag is chosen."""
        if self._glob is not None:
            return self._glob.matches(tag)
        version = version_of(tag)
        return version is not None and all(version.match(f"{operator}{bound}") for operator, bound in self._bounds)


def version_of(tag: str) -> Version | None:
    """Return the version that a tag writes, `v` before it or parts left out (`v3`, `3.18`); None for another tag."""
    try:
        return Version.parse(tag.removeprefix("v"), optional_minor_and_patch=True)
    except ValueError:
        return None
