"""The languages that tasks are described in: for each family a module that writes descriptions and reads them back."""
