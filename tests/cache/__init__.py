"""The read-through cache: fills, readers, tags, membership, and the HTTP face over them."""
