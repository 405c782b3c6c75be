"""Weights as tokens: the static spec of a parameter tree, its codec, and its statistics."""
