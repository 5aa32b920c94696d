"""Tests of the admin listener and the control socket."""
