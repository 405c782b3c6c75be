"""The images that families share."""
