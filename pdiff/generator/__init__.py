"""A trained generator: its parts, its conditions, drawing networks and adapting them."""
