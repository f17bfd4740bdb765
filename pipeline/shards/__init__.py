"""Data at rest: tars of samples, the index beside them, and the tools that write and check both."""
