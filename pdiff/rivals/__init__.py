"""Other papers' generators, trained on the same zoo."""
