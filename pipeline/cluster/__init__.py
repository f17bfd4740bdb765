"""Ray: a cluster to run on, and jobs of one process per rank. The only place that imports it."""
