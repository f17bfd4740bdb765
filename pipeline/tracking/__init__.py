"""MLflow: the driver owns the runs, rank 0 speaks. The only place that imports it."""
