"""Scenarios: each file is a few differences from the defaults in `pdiff/config/fields.py`."""
