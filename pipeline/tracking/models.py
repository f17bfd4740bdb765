"""Finished models in MLflow: logged models, for `mlflow.pyfunc.load_model`, and versions in the model registry."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import __version__
from pipeline.metrics.schema import VAL, Better
from pipeline.tracking.patience import patience
from pipeline.tracking.runs import Tracker, raises_tracking_errors

LOADER = "pipeline.tracking.pyfunc"
VALUE_TAG, METRIC_TAG, STAGE_TAG = "minivit.value", "minivit.metric", "minivit.stage"
DIGEST_TAG = "minivit.digest"
FORBIDDEN = re.compile(r"[^\w-]")  # in names of logged models
PARAM_TYPES: Mapping[type, str] = {int: "long", float: "double", list: "string"}  # lists are JSON: MLflow nests none


@dataclass(frozen=True)
class FinishedModel:
    """A bundle, the stage that trained it, and its last validation's measures; `digest` is of the stage's inputs.

    `example_prediction` and `predict_options` are those of its task: what MLflow's signature tells of its predictions.
    """

    stage: str
    folder: Path
    channels: int
    image_size: tuple[int, int]
    digest: str
    example_prediction: Any
    predict_options: Mapping[str, type] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)


@raises_tracking_errors
def log_model(tracker: Tracker, run_id: str, model: FinishedModel) -> str:
    """Log a model to a run and return its id; a model that an earlier start logged completely is reused."""
    from mlflow.entities import LoggedModelOutput

    for earlier in logged_models(tracker, run_id):
        if str(earlier.status) == "READY" and earlier.tags.get(DIGEST_TAG) == model.digest:
            return str(earlier.model_id)
        tracker.client.delete_logged_model(earlier.model_id)  # the driver was killed while writing it
    name = FORBIDDEN.sub("-", model.stage)
    tags = {STAGE_TAG: model.stage, DIGEST_TAG: model.digest}
    logged = tracker.client.create_logged_model(tracker.experiment_id, name, run_id, tags, model_type="vision")
    with tempfile.TemporaryDirectory() as scratch:
        _save(Path(scratch, "model"), model, str(logged.model_id), run_id)
        with patience.uploading(Path(scratch, "model")):
            tracker.client.log_model_artifacts(logged.model_id, str(Path(scratch, "model")))
    _link_measures(tracker, run_id, model, str(logged.model_id))
    tracker.client.log_outputs(
        run_id, [LoggedModelOutput(logged.model_id, step=0)]
    )  # MLflow's page of the run shows it
    tracker.client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _link_measures(tracker: Tracker, run_id: str, model: FinishedModel, model_id: str) -> None:
    """Link the run's last validation values to the model; logging an unchanged value again adds no row."""
    finite = [VAL + name for name, value in model.measures.items() if math.isfinite(value)]
    for name, key in tracker.names(run_id, finite).items():
        value, history = model.measures[name.removeprefix(VAL)], tracker.client.get_metric_history(run_id, key)
        last = max(history, key=lambda metric: metric.step, default=None)
        if last is not None and last.value == value:
            tracker.client.log_metric(run_id, key, value, last.timestamp, last.step, model_id=model_id)
        else:
            tracker.client.log_metric(run_id, key, value, model_id=model_id)


def logged_models(tracker: Tracker, run_id: str) -> list[Any]:
    """The logged models of a run, in any state."""
    found = tracker.client.search_logged_models([tracker.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    return list(found)


def _save(path: Path, model: FinishedModel, model_id: str, run_id: str) -> None:
    """Write the bundle with MLflow's own files: loader, signature and input example."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    height, width = model.image_size
    save_model(
        str(path),
        loader_module=LOADER,
        data_path=str(model.folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=signature(model),
        input_example={"images": np.zeros((1, height, width, model.channels), np.uint8)},
        pip_requirements=[f"minivit-pipeline=={__version__}"],
    )


def signature(model: FinishedModel) -> Any:
    """MLflow's `ModelSignature`: images of any size, the task's predictions and its options, all optional."""
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, model.channels), "images")
    one = model.example_prediction
    if isinstance(one, np.ndarray):
        outputs = Schema([TensorSpec(one.dtype, (-1,) * (1 + one.ndim))])
    else:
        outputs = infer_signature(model_output=[one]).outputs
    options = [ParamSpec(name, PARAM_TYPES[kind], None) for name, kind in model.predict_options.items()]
    params = {"params": ParamSchema(options)} if options else {}
    return ModelSignature(Schema([images]), outputs, **params)


class Registered(NamedTuple):
    """A version in the registry: whether it has the alias, and why it cannot be compared with the one that has it."""

    version: str
    has_alias: bool
    incomparable: str = ""


@raises_tracking_errors
def register(
    tracker: Tracker, name: str, run_id: str, alias: str, model: FinishedModel, selects: str, better: Better
) -> Registered:
    """Register a run's logged model as a version of `name`.

    The alias moves only if the model's measure `selects` beats that of the alias's current version; one chosen by
    another measure, or by hand, keeps it. A version that an earlier start created is reused.
    """
    from mlflow.exceptions import MlflowException

    client, model_id = tracker.client, log_model(tracker, run_id, model)
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((found for found in versions if found.tags.get("minivit.model") == model_id), None)
    value = model.measures.get(selects)
    value = value if value is not None and math.isfinite(value) else None
    if version is None:
        tags = {"minivit.model": model_id, "minivit.run": run_id, STAGE_TAG: model.stage, METRIC_TAG: selects}
        tags |= {} if value is None else {VALUE_TAG: repr(value)}
        # MLflow would resolve `models:/ID` in the process's default store, not in the client's.
        place = client.get_logged_model(model_id).artifact_location
        version = client.create_model_version(name, place, run_id, tags, model_id=model_id)
    try:
        champion = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        champion = None
    if champion is not None and str(champion.version) == str(version.version):
        return Registered(str(version.version), True)
    incomparable = "" if champion is None else why_incomparable(champion, selects, value)
    wins = champion is None or (not incomparable and beats(value, champion.tags.get(VALUE_TAG), better))
    if wins:
        client.set_registered_model_alias(name, alias, str(version.version))
    return Registered(str(version.version), wins, incomparable)


def why_incomparable(champion: Any, selects: str, value: float | None) -> str:
    """Why a value of the measure `selects` cannot be compared with the champion's; empty if it can."""
    found = champion.tags.get(METRIC_TAG)
    if found is None:
        return f"version {champion.version} records no measure"
    if found != selects:
        return f"version {champion.version} was chosen by {found}"
    return f"this model has no {selects}" if value is None else ""


def beats(value: float | None, champion: str | None, better: Better) -> bool:
    """Whether a measure beats the champion's, which is read from its tag; a missing one loses."""
    if value is None or champion is None:
        return value is not None
    return value > float(champion) if better == "higher" else value < float(champion)
