"""Networks on request: from the command line, from Python, on a page."""
