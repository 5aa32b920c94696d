"""Secrets that are recognised wherever they are shown, in whatever form: as they are, escaped for URLs, encoded."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from urllib.parse import quote

_SHORTEST = 16


class Marks:
    """Looks for secrets. `secrets`: the part of each that cannot be there by chance, by what it is."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        short = [name for name, text in secrets.items() if len(text) < _SHORTEST]
        assert not short, f"too short to be known again in base64: {short}"
        self._forms = {name: tuple(_forms(text)) for name, text in secrets.items()}

    def found(self, shown: bytes) -> list[str]:
        """Return which of the secrets can be read in `shown`."""
        return [name for name, forms in self._forms.items() if any(form in shown for form in forms)]


def _forms(text: str) -> Iterator[bytes]:
    data = text.encode()
    yield data
    yield quote(text, safe="").encode()
    yield data.hex().encode()
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The characters at both ends depend on what stands beside the secret.
            encoded = encode(b"\0" * before + data)
            yield encoded[4 if before else 0 : len(encoded) - 4]
