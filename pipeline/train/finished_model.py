"""The finished model of a training stage, from its last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor, nn

from pipeline.checkpoints.manifest import read_manifest
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import open_storage
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.train.job import TrainJob, stage_id
from pipeline.train.saver import require_current_attempt
from pipeline.train.stall import StallWatch


def save_finished_collective(
    job: TrainJob, model: nn.Module, step: int, metrics: Mapping[str, float], watch: StallWatch
) -> None:
    """Write the checkpoint of `step` as the bundle `model/` in the stage's folder; rank 0 does.

    `model` says which parameters are frozen; `metrics` are those of the last validation.
    """
    if dist.get_rank() == 0:
        require_current_attempt(job)
        storage, folder = open_storage(job.checkpoints), step_folder(step)
        state = StateReader(storage, folder, read_manifest(storage, folder), watch.progress).model_state()
        state |= _frozen(job, model)
        provenance = {
            "stage": stage_id(job.folder),
            "step": step,
            "samples": step * job.stage.global_batch_size,
            "ema": job.stage.ema,
            "digest": job.digest,
            "metrics": metrics,
        }
        settings = job.stage.task.measuring_settings
        Bundle(state, job.spec, job.preprocess, job.classes, provenance, settings).save(job.folder / "model")
    dist.barrier()


def _frozen(job: TrainJob, model: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters in their original precision: checkpoints hold them in the engine's."""
    names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not names or not job.init:
        return {}
    given = load_bundle(job.init).state
    return {name: given[name] for name in names}
