"""Pulls: what a client does from its first request for an image's manifest to the last blob of it that it wants.

`model` has what is told and shown, `gathering` collects what one process saw, `tracking` tells pulls from requests,
`pull` is one of them, `places` finds those that run, `closures` has what manifests name, `agents` knows the programs
that clients are, `bars` shows requests, `summing` keeps what is shown of pulls that ended, `counting` has their
metrics.
"""
