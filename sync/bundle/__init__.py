"""Bundles: images in tar volumes that are carried to sites without a network. docs/bundle-format.md is the format."""
