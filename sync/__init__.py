"""What nodes tell one another about their catalogs: the change feed on the wire, and its exchange."""
