"""Replication between regions and bundles, by digest (docs/architecture.md)."""
