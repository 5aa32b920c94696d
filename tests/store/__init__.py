"""The store and its catalog."""
