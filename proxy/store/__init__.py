"""Content-addressed files, and the catalog that says what they are and who may have them."""
