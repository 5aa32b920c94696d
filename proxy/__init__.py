"""The read-through mirror: the HTTP face, the cache, upstreams and the store (docs/architecture.md)."""
