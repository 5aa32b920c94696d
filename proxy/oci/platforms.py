"""Platforms: what an index entry is built for, and what somebody asked for (image-spec `image-index.md`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from proxy.oci.errors import BadRequest

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
}
_PLAIN_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Platform:
    """`linux/arm64/v8`; `variant` is empty where nothing was said. Values are kept as written."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return `os/architecture` or `os/architecture/variant` as a Platform.

        Raises:
            BadRequest: it is neither.
        """
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_COMPONENT.fullmatch(part) for part in parts):
            raise BadRequest(
                f"platform {text[:160]!r} is malformed: expected os/architecture or os/architecture/variant, "
                "such as linux/amd64 or linux/arm64/v8"
            )
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def matches(self, offered: Platform) -> bool:
        """Tell whether `offered` is what this one asks for.

        Case and the usual aliases (aarch64, x86_64) do not count. Without a variant every variant is meant;
        with one, an offer without is the plain one: arm64 is v8, arm v7, amd64 v1.
        """
        asked, given = self._normal(), offered._normal()
        if asked[:2] != given[:2]:
            return False
        plain = _PLAIN_VARIANT.get(given[1], "")
        return not asked[2] or asked[2] == (given[2] or plain)

    def _normal(self) -> tuple[str, str, str]:
        architecture = self.architecture.lower()
        variant = self.variant.lower()
        return self.os.lower(), _ARCHITECTURES.get(architecture, architecture), variant
