"""A client of one upstream registry, given to the rest of the mirror as a Source."""
