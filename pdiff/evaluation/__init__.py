"""A finished generator against everything that it is compared with."""
