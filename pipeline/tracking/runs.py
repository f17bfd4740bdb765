"""The runs of a pipeline in MLflow: one parent, one child per stage and branch. Used only by the driver."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from pipeline.credentials import shown
from pipeline.errors import TrackingError
from pipeline.tracking.names import TAG_PREFIX, mlflow_name
from pipeline.tracking.patience import patience
from pipeline.tracking.store import (
    NO_ANSWER,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    TrackingStore,
    client_for,
    find_experiment,
    reason,
    refuses_password,
    sole_user,
    sqlite_path,
    unstorable,
)

MAX_PER_CALL = 100  # parameters, or tags
MAX_METRICS_PER_CALL = 1000
MAX_DIGEST_LENGTH = 36
MAX_PARAM_LENGTH = 6000
MAX_DATASET_NAME_LENGTH = 500
DATASET_ATTEMPTS = 3
LONG_PARAMS = "long_params"  # artifact folder for parameters too long for MLflow
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"

FIRST_SERVER_ERROR = 500  # of HTTP's statuses
TRAINING, VALIDATION, EVALUATION = "training", "validation", "evaluation"  # contexts of data sets

P = ParamSpec("P")
R = TypeVar("R")


def raises_tracking_errors(method: Callable[Concatenate[Tracker, P], R]) -> Callable[Concatenate[Tracker, P], R]:
    """Decorator: re-raises any error of MLflow or its store as a `TrackingError`, and notes whether it answers."""

    @functools.wraps(method)
    def call(tracker: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = method(tracker, *args, **kwargs)
        except TrackingError:
            raise
        except Exception as error:
            if NO_ANSWER.search(str(error)):
                patience.not_heard()
            raise TrackingError(f"{tracker.store.setting}: {tracker.complaint(error)}") from error
        patience.heard()
        return result

    return call


def as_parameters(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= as_parameters(item, f"{name}.")
        else:
            flat[name] = str(item)
    return flat


class DataRead(NamedTuple):
    """A data set that a run reads, by its name in the config and the digest of its index; `context`: what for."""

    name: str
    source: str  # the shards' pattern
    digest: str
    samples: int
    context: str


@dataclass
class Tracker:
    """The driver's handle on one pipeline's runs; connects to the store on its first use.

    Names that MLflow rejects are changed (`names.mlflow_name`); a tag of the run holds each original.
    """

    store: TrackingStore

    def __post_init__(self) -> None:
        self._renamed: set[tuple[str, str]] = set()

    @property
    def uri(self) -> str:
        return self.store.uri

    @cached_property
    def client(self) -> Any:
        return self._connected[0]

    @cached_property
    def experiment_id(self) -> str:
        return self._connected[1]

    @cached_property
    def _connected(self) -> tuple[Any, str]:
        """The client, and the experiment's id."""
        with sole_user(self.store):
            client = client_for(self.uri, self.store.setting)
            return client, self._experiment(client)

    @raises_tracking_errors
    def _experiment(self, client: Any) -> str:
        """Id of the experiment, which is created if it does not exist."""
        if found := find_experiment(client, self.store):
            return str(found.experiment_id)
        location = self.store.artifacts.resolve().as_uri() if sqlite_path(self.uri) else None
        try:
            return str(client.create_experiment(self.store.experiment, artifact_location=location))
        except Exception:
            if found := find_experiment(client, self.store):  # another pipeline has just created it
                return str(found.experiment_id)
            raise

    @raises_tracking_errors
    def start(
        self,
        name: str,
        *,
        run_id: str | None,
        parent: str | None = None,
        began: float | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Begin a run, or resume the one with that id if the store still has it; returns its id.

        `began`: start time in seconds since 1970; default: now. `tags` describe its origin, by MLflow's names.
        """
        if run_id and self.has(run_id):
            self.client.update_run(run_id, status=RUNNING)
            self.tags(run_id, tags or {})
            return run_id
        tags = {**(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
        start_time = None if began is None else int(began * 1000)
        created = self.client.create_run(self.experiment_id, start_time, tags, run_name=name)
        return str(created.info.run_id)

    @raises_tracking_errors
    def has(self, run_id: str) -> bool:
        """Whether the store has a run of that id that is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise

    @raises_tracking_errors
    def names(self, run_id: str, names: Iterable[str]) -> dict[str, str]:
        """The MLflow names of a run's metrics, parameters or tags; tags of the run map changed names back."""
        from mlflow.entities import RunTag

        found = {name: mlflow_name(name) for name in names}
        changed = {theirs: ours for ours, theirs in found.items() if theirs != ours}
        new = [RunTag(TAG_PREFIX + name, changed[name]) for name in changed if (run_id, name) not in self._renamed]
        for start in range(0, len(new), MAX_PER_CALL):
            self.client.log_batch(run_id, tags=new[start : start + MAX_PER_CALL])
        self._renamed |= {(run_id, name) for name in changed}
        return found

    @raises_tracking_errors
    def params(self, run_id: str, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters; skips those the run already has, since MLflow forbids changes.

        Values longer than MLflow allows are truncated; an artifact holds the full value.
        """
        from mlflow.entities import Param

        flat = as_parameters(settings)
        known, names = self.client.get_run(run_id).data.params, self.names(run_id, flat)
        values = {names[key]: value for key, value in flat.items() if names[key] not in known}
        new = [Param(name, value[:MAX_PARAM_LENGTH]) for name, value in values.items()]
        for start in range(0, len(new), MAX_PER_CALL):
            self.client.log_batch(run_id, params=new[start : start + MAX_PER_CALL])
        for name, value in values.items():
            if len(value) > MAX_PARAM_LENGTH:
                self.client.log_text(run_id, value, f"{LONG_PARAMS}/{name}.txt")

    @raises_tracking_errors
    def metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0, at: float | None = None) -> None:
        """Log values measured at a time in seconds since 1970, by default now.

        Logging the same values at the same time again adds no row.
        """
        from mlflow.entities import Metric

        names, timestamp = self.names(run_id, metrics), int((time.time() if at is None else at) * 1000)
        rows = [Metric(names[name], value, timestamp, step) for name, value in metrics.items()]
        for start in range(0, len(rows), MAX_METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS_PER_CALL])

    @raises_tracking_errors
    def last_step(self, run_id: str, name: str) -> int:
        """The highest step that a run has a metric for, by its name in MLflow; -1 if it has none."""
        return max((metric.step for metric in self.client.get_metric_history(run_id, name)), default=-1)

    @raises_tracking_errors
    def batch(self, run_id: str, metrics: list[Any]) -> None:
        """Log up to `MAX_METRICS_PER_CALL` of MLflow's own metric entities in one call."""
        self.client.log_batch(run_id, metrics=metrics)

    @raises_tracking_errors
    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        names = self.names(run_id, tags)
        for name, value in tags.items():
            self.client.set_tag(run_id, names[name], value)

    @raises_tracking_errors
    def dataset(self, run_id: str, data: DataRead) -> None:
        """Record which data a run read."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, digest = data.name[:MAX_DATASET_NAME_LENGTH], data.digest[:MAX_DIGEST_LENGTH]
        profile = json.dumps({"num_samples": data.samples})
        dataset = Dataset(name, digest, "webdataset", data.source, profile=profile)
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])]
        for attempt in range(DATASET_ATTEMPTS):
            try:
                self.client.log_inputs(run_id, inputs)
                break
            except Exception:
                # MLflow looks up the data set, then inserts it: a parallel branch or another pipeline may have inserted
                # it in between. The next attempt finds it.
                if attempt == DATASET_ATTEMPTS - 1:
                    raise

    @raises_tracking_errors
    def artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder with its contents, with the run."""
        try:
            with patience.uploading(path):
                if path.is_dir():
                    self.client.log_artifacts(run_id, str(path), folder)
                else:
                    self.client.log_artifact(run_id, str(path), folder)
        except Exception as error:
            if NO_ANSWER.search(str(error)) or refuses_password(error):
                raise
            place = self.client.get_run(run_id).info.artifact_uri
            raise unstorable(self.store, place, path.name, reason(error, self.uri)) from error

    @raises_tracking_errors
    def end(self, run_id: str, status: str, ended: float | None = None) -> None:
        """Record how a run ended, and when, in seconds since 1970, by default now.

        Ignores a run that was deleted, or that an earlier start tracked in another store.
        """
        if self.has(run_id):
            self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))

    def complaint(self, error: Exception) -> str:
        """What went wrong with a call, and how to fix it."""
        store = f"the MLflow store at {shown(self.uri)}"
        if refuses_password(error):
            return f"{store} refuses the user or the password; correct {USER_VARIABLE} and {PASSWORD_VARIABLE}"
        why = reason(error, self.uri)
        if NO_ANSWER.search(str(error)):
            return f"{store} does not answer ({why}); restart it"
        return f"{store} refused a request ({why}); fix the cause and run the same command again"

    def answers(self) -> bool:
        """Whether the store responds at all, even with an error."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            return error.get_http_status_code() < FIRST_SERVER_ERROR
        except Exception:  # SQLAlchemy's, of a database
            return False
        return True
