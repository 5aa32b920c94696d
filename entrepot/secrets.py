"""Where the configuration says that secrets are: files, and the helpers of a docker config; the fleet's own.

All of it blocks on files. What is read goes to `upstreams` and `fleet`, and is shown nowhere.
"""

from __future__ import annotations

from yarl import URL

from entrepot.config import Config, Problem, UpstreamConfig
from proxy.upstream.credentials import (
    Credential,
    CredentialError,
    find_login,
    read_docker_config,
    read_helpers,
    read_password,
)
from proxy.upstream.helpers import Helper


def main_credential(upstream: UpstreamConfig) -> Credential | None:
    """Return the credential of `username` and `password_file`. Raises CredentialError."""
    if upstream.username is None or upstream.password_file is None:
        return None
    return read_password(upstream.username, upstream.password_file)


def reread(upstream: UpstreamConfig, host: URL) -> Credential | None:
    """Return what the files say now of the credential for `host`, one of this upstream's. Raises CredentialError."""
    if host == URL(upstream.url) and (credential := main_credential(upstream)) is not None:
        return credential
    return find_login(read_docker_config(upstream.docker_config), host) if upstream.docker_config else None


def helpers_of(upstream: UpstreamConfig) -> dict[URL, Helper]:
    """Return the credential helper of each host that has one. Raises CredentialError where it is not installed."""
    if upstream.docker_config is None:
        return {}
    known, logins = read_helpers(upstream.docker_config), read_docker_config(upstream.docker_config)
    helpers: dict[URL, Helper] = {}
    for host in (URL(upstream.url), *map(URL, upstream.alternates)):
        found = known.helper_for(host, logins)
        if found is not None and (host != URL(upstream.url) or upstream.username is None):
            helpers[host] = Helper(*found)
            helpers[host].check()
    return helpers


def check_docker_configs(config: Config) -> list[Problem]:
    """Return a problem for every docker config that cannot be used, helpers that are not installed among them."""
    problems = []
    for upstream in config.upstreams:
        try:
            helpers_of(upstream)
        except CredentialError as error:
            accepted = "a docker config.json whose credential helpers are installed"
            key = f"upstream {upstream.name}.docker_config"
            problems.append(Problem(str(upstream.docker_config), key, str(error), accepted))
    return problems


SHORTEST = 16


def fleet_secret(config: Config) -> bytes:
    """Return what nodes sign with. Raises OSError that names the file where it cannot be read or is too short."""
    if config.fleet_secret is not None:
        return config.fleet_secret.reveal().encode()
    path = config.fleet_secret_file
    if path is None:
        raise OSError("a fleet needs ENTREPOT_FLEET_SECRET or fleet_secret_file, the same on every node")
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise OSError(error.errno, f"fleet_secret_file {path} cannot be read: {error.strerror}") from None
    if len(secret) < SHORTEST:
        raise OSError(f"fleet_secret_file {path} holds less than {SHORTEST} characters")
    return secret
