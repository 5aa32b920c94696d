"""The scenario of bundles: each tool writes and takes in the same image, and what it used is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.bundles import COPY, SKOPEO, bundles
from bench.content import MIB
from bench.servers import ENTREPOT, bed
from bench.turns import QUICK


@pytest.mark.slow
@pytest.mark.needs("docker-registry", "skopeo")
def test_all_tools_write_and_take_in_the_same_image() -> None:
    with bed() as place:
        tables = bundles(place, replace(QUICK, rounds=1, bundle_size=16 * MIB), lambda text: None)
    for table in tables:
        assert not table.absent
        for tool in (ENTREPOT, SKOPEO, COPY):
            (sample,) = table.samples[tool]
            assert min(sample["mib_s"], sample["seconds"], sample["rss"]) > 0
