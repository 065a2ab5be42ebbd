"""Documents: readers and generators of text."""
