"""MLflow: the driver owns the runs, rank 0 reports. The only package that imports it."""
