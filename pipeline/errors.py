"""Errors that a user can fix. Each message is one sentence: where, what was found, what was expected, how to fix it."""

from __future__ import annotations


class PipelineError(Exception):
    """An error that the reader of its message can fix; shown without a traceback.

    `exit_code` is the process's exit status when the error reaches the command line.
    """

    exit_code = 1


class ConfigError(PipelineError):
    """The YAML, an override or a combination of settings is invalid."""

    exit_code = 2


class DataError(PipelineError):
    """Shards, indexes, labels or images are missing or invalid."""

    exit_code = 3


class ModelError(PipelineError):
    """A model specification is impossible, or weights do not fit it."""

    exit_code = 4


class CheckpointError(PipelineError):
    """A checkpoint or run folder is unusable in its current state."""

    exit_code = 5


class ClusterError(PipelineError):
    """The cluster cannot provide the resources that the pipeline needs, or has lost them for good."""

    exit_code = 6


class WorkersLost(ClusterError):
    """Ranks died or could not join through no fault of the user; the job can be restarted."""


class WorkersLate(WorkersLost):
    """Ranks did not start in time, because there was no room for them or the nodes were busy."""


class TrackingError(PipelineError):
    """The MLflow store does not answer or refuses the run."""

    exit_code = 7


class TrainingError(PipelineError):
    """Training failed numerically: its loss or gradients became NaN or infinite."""

    exit_code = 8


class Interrupted(PipelineError):
    """A signal ended the run after its work was committed; the same command resumes it."""

    exit_code = 75
