"""Running pdiff more than once, or in more than one place."""
