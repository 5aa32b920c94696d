"""From the configuration of an upstream to the sources that are asked for it. Reads secrets, keeps them to itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from yarl import URL

from entrepot.config import Config, UpstreamConfig
from metrics.events import Emit
from proxy.upstream.credentials import read_docker_config, read_password
from proxy.upstream.registry import RegistrySource, build_sources
from proxy.upstream.settings import UpstreamSettings, trust

Sources = Mapping[str, list[RegistrySource]]


@asynccontextmanager
async def open_sources(config: Config, emit: Emit) -> AsyncIterator[Sources]:
    """Give the sources of every upstream, the main one first.

    Raises CredentialError or OSError for a secret or certificate file that cannot be used.
    """
    async with AsyncExitStack() as stack:
        sources: dict[str, list[RegistrySource]] = {}
        for upstream in config.upstreams:
            settings = await asyncio.to_thread(_settings, upstream)
            sources[upstream.name] = build_sources(settings, emit)
            for source in sources[upstream.name]:
                stack.push_async_callback(source.aclose)
        yield sources


def _settings(upstream: UpstreamConfig) -> UpstreamSettings:
    credential = None
    if upstream.username is not None and upstream.password_file is not None:
        credential = read_password(upstream.username, upstream.password_file)
    return UpstreamSettings(
        name=upstream.name,
        url=URL(upstream.url),
        alternates=tuple(URL(url) for url in upstream.alternates),
        credential=credential,
        logins=read_docker_config(upstream.docker_config) if upstream.docker_config else {},
        proxy=URL(upstream.proxy) if upstream.proxy else None,
        tls=trust(str(upstream.ca_file) if upstream.ca_file else None),
        redirect_hosts=frozenset(upstream.redirect_hosts),
    )
