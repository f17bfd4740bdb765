"""Ray Train without the helper actors that do nothing for us."""

from __future__ import annotations

from ray._private.worker import get_dashboard_url
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Starts no manager of Ray data sets, an unused actor that would take three CPU-seconds at every start.

    Without a dashboard, it starts no watch over placement groups either: that asks the dashboard whether the controller
    lives, waits forty seconds for an answer that never comes, and would delay the end of a shorter job, and so the next
    stage or the restart after a lost rank, by twelve seconds.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        left_out: tuple[type[RayTrainCallback], ...] = (DatasetsCallback,)
        if not get_dashboard_url():
            left_out += (PlacementGroupCleanerCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, left_out)]
