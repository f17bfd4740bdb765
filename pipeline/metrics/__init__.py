"""Measures of models: their names and directions (`schema.py`), their sums, and collectors of what is no sum.

A measure that is a mean over samples, pixels or objects needs only a sum in its task; a file here says how it is summed
if several tasks share it.
"""
