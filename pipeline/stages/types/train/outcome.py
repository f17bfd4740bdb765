"""What a training stage leaves: the best of what it measured, and its model as MLflow gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.metrics.outcome import measures_of
from pipeline.metrics.schema import Schema, best
from pipeline.models.bundle import load_bundle
from pipeline.stages.folder import StageFolder, Status
from pipeline.tasks.task import own_task
from pipeline.tracking.models import FinishedModel


def best_values(schema: Schema, validations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best value of each measure over all validations; without those that were never finite."""
    found: dict[str, float] = {}
    for measure in schema.measures:
        values = {number: row.get(measure.name) for number, row in enumerate(validations)}
        chosen = best(values, measure.better)
        if chosen is not None:
            found[measure.name] = validations[chosen][measure.name]
    return found


def finished_model(stage_id: str, folder: StageFolder, status: Status) -> FinishedModel:
    """A training stage's model, as MLflow gets it."""
    described = load_bundle(folder.model, weights=False)
    preprocess, task = described.preprocess, own_task(described)
    return FinishedModel(
        stage=stage_id,
        folder=folder.model.absolute(),
        channels=preprocess.channels,
        image_size=preprocess.image_size,
        digest=status.digest,
        example_prediction=task.example_prediction(described.spec.num_classes),
        predict_options=task.predict_options,
        measures=measures_of({"schema": status.schema, "result": status.result}),
    )
