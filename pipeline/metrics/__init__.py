"""What is measured of a model: the names and directions of measures, their sums, and what else an evaluation leaves."""
