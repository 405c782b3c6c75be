"""Scenarios: each file is a few differences from `common.py`."""
