"""A trained generator: its parts, what it is told of tasks, drawing networks and adapting them."""
