"""Pulls: what a client does from its first request for an image's manifest to the last blob of it that it wants.

`model` has what is told and shown, `gathering` collects what one process saw, `tracking` tells pulls from requests,
`summing` keeps what is shown of those that ended.
"""
