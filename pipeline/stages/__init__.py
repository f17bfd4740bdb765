"""Stages: the graph a pipeline file describes, planned, resolved and run."""
