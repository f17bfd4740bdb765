"""`mlflow.pyfunc.load_model(...).predict(images)` of a model of every task, as a stage logs it, in a local store."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.pyfunc.scoring_server import predictions_to_json

from pipeline import load_model
from pipeline.config.schema import TrackingConfig
from pipeline.config.task import task_class, task_types
from pipeline.errors import ModelError
from pipeline.models import Bundle, MiniViT, Preprocess
from pipeline.models.variants import build_backbone
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.types.train.outcome import finished_model
from pipeline.tasks.base import TaskModule
from pipeline.tasks.classification.module import Classification
from pipeline.tasks.task import task_of
from pipeline.text.training import train_tokenizer
from pipeline.tracking.models import log_model
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store

CLASSES = ["wall", "bag", "shoe"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
SETTINGS = {"clip": {"text": {"length": 10}, "tokenizer": {"size": 300}}}
FEATURES = "[Array(double) (required)]"
BOXES = "'boxes': Array(Array(double)) (required)"
NAMES = "Array(string) (required)"
OUTPUTS = {
    "classification": "[Any (required)]",  # MLflow has no type for a name with its probability
    "segmentation": "[Tensor('uint8', (-1, -1, -1))]",
    "depth": "[Tensor('float32', (-1, -1, -1))]",
    "detection": f"[{BOXES}, 'scores': Array(double) (required), 'labels': {NAMES}, 'classes': Array(long) (required)]",
    "keypoints": f"[{BOXES}, 'keypoints': Array(Array(Array(double))) (required), 'names': {NAMES}]",
}
OPTIONS = {"classification": {"top_k": 1}, "detection": {"score": 0.0}, "keypoints": {"boxes": [[], [[1, 2, 9, 8]]]}}
PREDICTED = [kind for kind in task_types() if kind != "zero_shot"]  # that one only evaluates models of others


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(choose_store(TrackingConfig(), tmp_path_factory.mktemp("runs"), {}, {}))


@pytest.fixture(autouse=True)
def store(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)


def logged(tracker: Tracker, folder: Path, kind: str, channels: int = 3) -> Any:
    """An untrained model of a task, loaded from MLflow."""
    task = task_of(task_class(kind)(**SETTINGS.get(kind, {})))
    backbone = build_backbone("nano", image_size=16, patch_size=4, depth=2, channels=channels, **task.backbone_fields())
    spec = task.model_spec(backbone, len(CLASSES), task_of(task_class("classification")()).model_spec(backbone, 3))
    tokenizer = train_tokenizer(["a red ankle boot"] * 4, 300, 10) if kind == "clip" else None
    preprocess = Preprocess((0.5,) * channels, (0.25,) * channels, channels, (16, 16), tokenizer=tokenizer)
    classes = CLASSES if spec.num_classes == len(CLASSES) else None
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, classes).save(folder)
    status = Status(FINISHED, "pretrain", kind, {}, schema=task.measured.to_dict(), result={"measures": {}})
    finished = finished_model(f"pretrain/{kind}", SimpleNamespace(model=folder), status)  # type: ignore[arg-type]
    run_id = tracker.start("stage", run_id=None)
    return mlflow.pyfunc.load_model(f"models:/{log_model(tracker, run_id, finished)}")


def plain(predicted: Any) -> Any:
    """What MLflow's scoring server answers."""
    answer = io.StringIO()
    predictions_to_json(predicted, answer)
    return json.loads(answer.getvalue())["predictions"]


@pytest.mark.parametrize("kind", PREDICTED)
def test_a_model_of_every_task_predicts_from_mlflow_as_it_does_here(
    tracker: Tracker, tmp_path: Path, kind: str
) -> None:
    loaded = logged(tracker, tmp_path / "model", kind)
    here, signature = load_model(tmp_path / "model"), loaded.metadata.signature
    predicted = loaded.predict(IMAGES)
    assert plain(predicted) == plain(here.predict(list(IMAGES)))
    assert str(signature.outputs) == OUTPUTS.get(kind, FEATURES)
    if isinstance(predicted, np.ndarray):
        assert (predicted.dtype, predicted.shape) == (signature.outputs.inputs[0].type, (2, 20, 30))
    options = OPTIONS.get(kind, {})
    assert {param.name for param in signature.params or ()} == options.keys() == here.task.predict_options.keys()
    if options:
        params = {name: json.dumps(value) if isinstance(value, list) else value for name, value in options.items()}
        asked = loaded.predict(IMAGES, params=params)
        assert plain(asked) == plain(here.predict(list(IMAGES), **options)) != plain(predicted)
    example = loaded.input_example["images"]
    assert (example.shape, example.dtype) == ((1, 16, 16, 3), np.uint8)
    assert len(loaded.predict(example)) == 1


def test_an_option_that_is_no_json_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    loaded = logged(tracker, tmp_path / "model", "keypoints")
    with pytest.raises(ModelError, match=r"^predict: boxes is '\[\[1, 2', which is not JSON; give json\.dumps"):
        loaded.predict(IMAGES, params={"boxes": "[[1, 2"})


def test_many_classes_need_wider_maps() -> None:
    example = task_of(task_class("segmentation")()).example_prediction
    assert (example(256).dtype, example(257).dtype) == (np.uint8, np.int16)


def test_a_model_without_predictions_says_so(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = logged(tracker, tmp_path / "five", "classification", channels=5)
    with pytest.raises(ModelError, match=r"^predict: only supports 1 or 3 channels, but this model takes 5$"):
        loaded.predict(np.zeros((1, 8, 8, 5), np.uint8))
    monkeypatch.setattr(Classification, "predict", TaskModule.predict)
    loaded = logged(tracker, tmp_path / "none", "classification")
    with pytest.raises(ModelError, match=r"^predict: a model of the task classification predicts nothing about images"):
        loaded.predict(IMAGES)
