"""Rivals: other papers' generators, trained on the same zoo."""
