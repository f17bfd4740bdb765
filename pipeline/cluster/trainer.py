"""Ray Train without Ray Data."""

from __future__ import annotations

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Starts no manager of Ray data sets, an unused actor that would take three CPU-seconds at every start."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)
        ]
