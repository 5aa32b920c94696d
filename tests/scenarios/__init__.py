"""The mirror as a process of its own, under many clients, kills and failing upstreams."""
