"""Families of tasks, one file each; `tasks.get_family` finds them by name."""
