"""The read-through cache: one download, many readers, and a Source over Sources."""
