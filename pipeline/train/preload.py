"""Imports, when imported, what ranks import."""

from pipeline.train import evaluate, probe, worker  # noqa: F401
from pipeline.train.engine import import_deepspeed

import_deepspeed()
