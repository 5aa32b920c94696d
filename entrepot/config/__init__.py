"""The configuration: TOML file, `ENTREPOT_*` environment and flags in, one frozen `Config` or all problems out."""

from entrepot.config.loading import check_files, default_data, load
from entrepot.config.model import Address, Config, LogConfig, UpstreamConfig
from entrepot.config.problems import ConfigError, Problem

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "LogConfig",
    "Problem",
    "UpstreamConfig",
    "check_files",
    "default_data",
    "load",
]
