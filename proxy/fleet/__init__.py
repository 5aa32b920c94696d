"""The nodes of a fleet: what they share in Redis, and ask one another. `cache.near` says what the cache needs."""
