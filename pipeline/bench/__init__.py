"""Measurements against peers, one file per question."""
