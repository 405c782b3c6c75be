"""The machine, its devices, processes, files and logs: nothing here knows what a network is."""
