"""Networks that others made: read from a folder, checked, and kept as the zoo of a run (`--mode=import`)."""
