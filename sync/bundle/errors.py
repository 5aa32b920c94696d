"""What can be wrong with a bundle, a key or a base, in words for the person who holds the disk."""

from __future__ import annotations


class BundleError(Exception):
    """What was asked cannot be done; the message names the thing and the remedy. Nothing was published."""


class NotABundle(BundleError):
    """The file does not begin as a volume of a bundle does."""


class Damaged(BundleError):
    """Bytes of a volume are not what the plan says. The message names the volume and the blob, or the part of it."""


class Untrusted(BundleError):
    """The signature is missing, of a key that is not trusted, or does not fit: the bundle was altered."""


class Refused(BundleError):
    """The bundle is whole, and may not or cannot be taken over here: a repository, a base, a clock, room."""


class Interrupted(BundleError):
    """The mirror beside which the work was done has ended, or the work was stopped: begin again, it goes on."""
