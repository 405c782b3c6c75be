"""The two trainings: what a step is, the loop around it, batches and metrics."""
