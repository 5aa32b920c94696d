"""Property tests run on machines that are busy: an example is not judged by its time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("entrepot", deadline=None)
settings.load_profile("entrepot")
