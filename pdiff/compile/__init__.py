"""Whether a config fits a TPU that is not there; no run needs it."""
