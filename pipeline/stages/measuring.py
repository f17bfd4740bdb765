"""What stages that measure finished models share: one job on the cluster, and one file of measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.metrics.outcome import schema_of
from pipeline.stages.evaluation_task import describe_measures
from pipeline.stages.folder import Status
from pipeline.stages.jobs import StageJob
from pipeline.stages.stage_run import StageRun
from pipeline.train.job import RankContext

Job = TypeVar("Job")


class MeasuringRun(StageRun):
    """Measures models in one job, whose ranks write the file `name` last."""

    def measure(
        self,
        status: Status,
        name: str,
        worker: Callable[[Job, RankContext], None],
        make: Callable[[], Job],
        reached: Callable[[Job], int] = lambda job: 0,
    ) -> dict[str, Any]:
        """Run the job and say what it found; returns the measures of each model and the number of samples.

        `make` and `reached` are those of `StageJob`.
        """
        with self.context.progress.following(self.id, self.folder.path):
            StageJob(
                context=self.context,
                id=self.id,
                folder=self.folder,
                status=status,
                resources=self.context.resources(self.context.config.stages[self.id]),
                worker=worker,
                make=lambda workers: make(),
                reached=reached,
            ).run()
        found = json.loads((self.folder.path / name).read_text())
        schema = schema_of(found)
        for model, measured in found["models"].items():
            words = ", ".join(describe_measures(schema, measured))
            self.context.say(self.id, f"{model}: {words}; {measured['samples']:,} samples")
        measures = {model: schema.of(measured) for model, measured in found["models"].items()}
        return {"measures": measures, "samples": found["samples"]}
