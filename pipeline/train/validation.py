"""What a training stage measures of its current weights on held-out data."""

from __future__ import annotations

from contextlib import nullcontext

import torch.distributed as dist

from pipeline.shards import bad_samples
from pipeline.stream.loader import EvalLoader
from pipeline.stream.source import Source
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.evaluate import evaluate_collective
from pipeline.train.job import TrainJob
from pipeline.train.online_knn import knn_collective
from pipeline.train.stall import StallWatch
from pipeline.train.teacher import MovingTeacher


class Validation:
    """Measures the weights, or the average or teacher that is `kept` of them."""

    def __init__(
        self, job: TrainJob, engine: Engine, kept: ShardedEMA | MovingTeacher | None, watch: StallWatch
    ) -> None:
        self.job, self.engine, self.kept, self.watch = job, engine, kept, watch

    def measure_collective(self) -> dict[str, float]:
        """Name, such as val/loss, -> value of every measure on the held-out data that the stage has."""
        with self.engine.computing_with_collective(self.kept.averages) if self.kept else nullcontext():
            means = self._means_collective(self.job.val) if self.job.val else {}
            if self.job.knn:
                means |= knn_collective(
                    self.engine.module,
                    self.job.knn,
                    self.job.preprocess,
                    self.watch,
                    batch_size=self.job.stage.eval.batch_size,
                    loader_workers=self.job.stage.data.loader_workers,
                    folder=self.job.folder,
                )
        return {f"val/{name}": value for name, value in means.items()}

    def _means_collective(self, data: Source) -> dict[str, float]:
        loader = self.loader(data)
        with self.watch.following(loader.bytes_read):
            collectors = self.engine.module.collectors(validation=True).values()
            return evaluate_collective(self.engine.module, loader, self.watch.beat, collectors)

    def loader(self, data: Source) -> EvalLoader:
        """This rank's share of a data set, in order."""
        job = self.job
        return EvalLoader(
            data,
            channels=job.spec.backbone.channels,
            targets=job.stage.task.targets,
            views=job.stage.task.view_groups(evaluation=True),
            size=job.spec.backbone.image_size,
            plain=job.preprocess.eval,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            batch_size=job.stage.eval.batch_size,
            loader_workers=job.stage.data.loader_workers,
            quarantine_path=job.folder / bad_samples.VAL,
        )
