"""The runs of a pipeline in MLflow: one parent, one child per stage and branch. Used only by the driver."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline.errors import TrackingError
from pipeline.tracking.names import TAG_PREFIX, mlflow_name
from pipeline.tracking.store import (
    Store,
    client_for,
    find_experiment,
    reason,
    shown,
    sole_user,
    sqlite_path,
    unstorable,
)

MAX_PER_CALL = 100  # parameters, or tags
MAX_PARAM_LENGTH = 6000
MAX_DATASET_NAME_LENGTH = 500
DATASET_ATTEMPTS = 3
LONG_PARAMS = "long_params"  # artifact folder for parameters too long for MLflow
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"

P = ParamSpec("P")
R = TypeVar("R")


def told(method: Callable[Concatenate[Tracker, P], R]) -> Callable[Concatenate[Tracker, P], R]:
    """The method, raising whatever MLflow or its store raises as a `TrackingError`."""

    @functools.wraps(method)
    def call(tracker: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(tracker, *args, **kwargs)
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(
                f"{tracker.store.setting}: the MLflow store at {shown(tracker.uri)} refused a call "
                f"({reason(error)}); fix it and run the same command again"
            ) from error

    return call


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = str(item)
    return flat


@dataclass
class Tracker:
    """The driver's handle on one pipeline's runs.

    Names that MLflow rejects are changed (`names.mlflow_name`); a tag of the run holds each original.
    """

    store: Store

    def __post_init__(self) -> None:
        self._renamed: set[tuple[str, str]] = set()
        with sole_user(self.store):
            self.client = client_for(self.uri, self.store.setting)
            self.experiment_id = self._experiment()

    @property
    def uri(self) -> str:
        return self.store.uri

    @told
    def _experiment(self) -> str:
        """Id of the experiment, which is created if it does not exist."""
        if found := find_experiment(self.client, self.store):
            return str(found.experiment_id)
        location = self.store.artifacts.resolve().as_uri() if sqlite_path(self.uri) else None
        try:
            return str(self.client.create_experiment(self.store.experiment, artifact_location=location))
        except Exception:
            if found := find_experiment(self.client, self.store):  # another pipeline was faster
                return str(found.experiment_id)
            raise

    @told
    def start(self, name: str, *, run_id: str | None, parent: str | None = None) -> str:
        """Begin a run, or resume the one with that id if the store still has it; returns its id."""
        if run_id and self.has(run_id):
            self.client.update_run(run_id, status=RUNNING)
            return run_id
        tags = {"mlflow.parentRunId": parent} if parent else {}
        created: str = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        return created

    @told
    def has(self, run_id: str) -> bool:
        """Whether the store has a run of that id that is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise

    @told
    def names(self, run_id: str, names: Iterable[str]) -> dict[str, str]:
        """The MLflow names of a run's metrics, parameters or tags; tags of the run map changed ones back."""
        from mlflow.entities import RunTag

        found = {name: mlflow_name(name) for name in names}
        changed = {theirs: ours for ours, theirs in found.items() if theirs != ours}
        new = [RunTag(TAG_PREFIX + name, changed[name]) for name in changed if (run_id, name) not in self._renamed]
        for start in range(0, len(new), MAX_PER_CALL):
            self.client.log_batch(run_id, tags=new[start : start + MAX_PER_CALL])
        self._renamed |= {(run_id, name) for name in changed}
        return found

    @told
    def params(self, run_id: str, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters; skips those the run already has, since MLflow forbids changes.

        Values longer than MLflow allows are truncated; an artifact holds the full value.
        """
        from mlflow.entities import Param

        flat = flatten(settings)
        known, names = self.client.get_run(run_id).data.params, self.names(run_id, flat)
        values = {names[key]: value for key, value in flat.items() if names[key] not in known}
        new = [Param(name, value[:MAX_PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(new), MAX_PER_CALL):
            self.client.log_batch(run_id, params=new[start : start + MAX_PER_CALL])
        for name, value in values.items():
            if len(value) > MAX_PARAM_LENGTH:
                self.client.log_text(run_id, value, f"{LONG_PARAMS}/{name}.txt")

    @told
    def metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        names = self.names(run_id, metrics)
        for name, value in metrics.items():
            self.client.log_metric(run_id, names[name], value, step=step)

    @told
    def last_step(self, run_id: str, name: str) -> int:
        """The highest step that a run has a metric for, by its name in MLflow; -1 if it has none."""
        return max((metric.step for metric in self.client.get_metric_history(run_id, name)), default=-1)

    @told
    def batch(self, run_id: str, metrics: list[Any]) -> None:
        """Log up to 1000 of MLflow's own metric entities in one call."""
        self.client.log_batch(run_id, metrics=metrics)

    @told
    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        names = self.names(run_id, tags)
        for name, value in tags.items():
            self.client.set_tag(run_id, names[name], value)

    @told
    def dataset(self, run_id: str, name: str, url: str, digest: str, context: str) -> None:
        """Record which data a run read, by the digest of its shard index."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name[:MAX_DATASET_NAME_LENGTH], digest[:36], source_type="webdataset", source=url)
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", context)])]
        for attempt in range(DATASET_ATTEMPTS):
            try:
                self.client.log_inputs(run_id, inputs)
                break
            except Exception:
                # MLflow looks up the data set, then inserts it: a parallel branch or another pipeline may have inserted
                # it in between. The next attempt finds it.
                if attempt == DATASET_ATTEMPTS - 1:
                    raise

    @told
    def artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder with its contents, with the run."""
        try:
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), folder)
            else:
                self.client.log_artifact(run_id, str(path), folder)
        except Exception as error:
            place = self.client.get_run(run_id).info.artifact_uri
            raise unstorable(self.store, place, path.name, reason(error)) from error

    @told
    def end(self, run_id: str, status: str) -> None:
        """Record how a run ended, unless it was deleted or an earlier start tracked it in another store."""
        if self.has(run_id):
            self.client.set_terminated(run_id, status)
