"""Composition: the command line, the configuration, and the objects that make a running mirror."""

__version__ = "0.1.0"
