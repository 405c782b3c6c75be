"""One question about generated networks in each file."""
