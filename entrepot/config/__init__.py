"""The configuration: TOML file, `ENTREPOT_*` environment and flags in, one frozen `Config` or all problems out."""

from entrepot.config.loading import check_files, default_data, load
from entrepot.config.model import (
    AccessConfig,
    Address,
    BundlesConfig,
    Config,
    GrantConfig,
    LogConfig,
    PeerConfig,
    Secret,
    SecretUrl,
    TlsConfig,
    TrustedKeyConfig,
    UpstreamConfig,
    WarmConfig,
)
from entrepot.config.problems import ConfigError, Problem

__all__ = [
    "AccessConfig",
    "Address",
    "BundlesConfig",
    "Config",
    "ConfigError",
    "GrantConfig",
    "LogConfig",
    "PeerConfig",
    "Problem",
    "Secret",
    "SecretUrl",
    "TlsConfig",
    "TrustedKeyConfig",
    "UpstreamConfig",
    "WarmConfig",
    "check_files",
    "default_data",
    "load",
]
