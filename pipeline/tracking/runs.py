"""The runs of a pipeline in MLflow: one parent, one child per stage and branch. Called by the driver alone."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipeline.errors import TrackingError

QUIET = ("mlflow", "mlflow.store.db.utils", "alembic", "sqlalchemy")
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_LENGTH = 6000
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def default_uri(runs_dir: Path) -> str:
    """The SQLite store that all runs in a folder share; absolute, as MLflow's own moves with the working directory."""
    return f"sqlite:///{(runs_dir / 'mlflow.db').resolve()}"


def client_for(uri: str) -> Any:
    """An MLflow client of a tracking URI that answers; else `TrackingError` within about ten seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    from mlflow import MlflowClient

    for name in QUIET:  # what fails is raised; after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # MLflow raises what its store raises: SQLAlchemy, requests, its own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrackingError(
            f"tracking.uri: the MLflow store at {uri} does not answer ({reason}); start it, correct the URI, "
            "or leave it out to use the SQLite store in the runs folder"
        ) from None
    return client


@contextmanager
def sole_user(uri: str) -> Iterator[None]:
    """Within this context no other process sets up the same SQLite store, for whose tables MLflow takes no lock.

    The folder is made. Raises `TrackingError` if it cannot be written.
    """
    if urlparse(uri).scheme != "sqlite":
        yield
        return
    store = Path(uri.removeprefix("sqlite:///"))
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        lock = store.with_name(f".{store.name}.lock").open("a")
    except OSError as error:
        raise TrackingError(f"tracking.uri: the MLflow store {store} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = str(item)[:MAX_PARAM_LENGTH]
    return flat


@dataclass
class Tracker:
    """The driver's hold on one pipeline's runs."""

    uri: str
    experiment: str
    artifacts: Path  # where a local store keeps artifacts

    def __post_init__(self) -> None:
        with sole_user(self.uri):
            self.client = client_for(self.uri)
            self.experiment_id = self._experiment()

    def _experiment(self) -> str:
        """Id of the experiment, which is made if there is none of that name."""
        if found := self.client.get_experiment_by_name(self.experiment):
            return found.experiment_id
        local = urlparse(self.uri).scheme == "sqlite"
        location = self.artifacts.resolve().as_uri() if local else None
        return self.client.create_experiment(self.experiment, artifact_location=location)

    def start(self, name: str, *, run_id: str | None, parent: str | None = None) -> str:
        """Begin a run, or go on with the one of that id if the store still has it; returns its id."""
        if run_id and self._exists(run_id):
            self.client.update_run(run_id, status=RUNNING)
            return run_id
        tags = {"mlflow.parentRunId": parent} if parent else {}
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def params(self, run_id: str, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters; those the run already has stay as they are, since MLflow forbids changes."""
        from mlflow.entities import Param

        known = self.client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in flatten(settings).items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=new[start : start + MAX_PARAMS_PER_CALL])

    def metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        for name, value in metrics.items():
            self.client.log_metric(run_id, name, value, step=step)

    def last_step(self, run_id: str, name: str) -> int:
        """The highest step that a run has a metric for; -1 if it has none."""
        return max((metric.step for metric in self.client.get_metric_history(run_id, name)), default=-1)

    def batch(self, run_id: str, metrics: list[Any]) -> None:
        """Log up to 1000 of MLflow's own metric entities in one call."""
        self.client.log_batch(run_id, metrics=metrics)

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)

    def dataset(self, run_id: str, name: str, url: str, digest: str, context: str) -> None:
        """Record which data a run consumed, by the digest of its shard index."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:36], source_type="webdataset", source=url)
        self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder with all it holds, with the run."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder)
        else:
            self.client.log_artifact(run_id, str(path), folder)

    def end(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)
