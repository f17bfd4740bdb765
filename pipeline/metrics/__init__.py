"""Measures of models: their names and directions, their sums, and the other results of an evaluation."""
