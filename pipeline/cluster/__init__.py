"""Ray: the cluster, and jobs with one process per rank. The only package that imports Ray."""
