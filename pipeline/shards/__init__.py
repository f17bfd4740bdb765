"""Data at rest: tars of samples, their index, and the tools that write and check both."""
