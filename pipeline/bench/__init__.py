"""Measurements, one file per question: `measure` returns the figures that a command of `minivit bench` prints.

The commands are in `cli/bench_training.py`, `bench_data.py` and `bench_state.py`; figures go to RESULTS.md with their
command and machine.
"""
