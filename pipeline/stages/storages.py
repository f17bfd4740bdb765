"""Whether checkpoints can be stored where a pipeline's training stages will put them."""

from __future__ import annotations

from pipeline.checkpoints.storage import Storage, open_storage, try_to_write
from pipeline.config.schema import PipelineConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, DataError
from pipeline.stages.findings import Findings


def check_address(stage_name: str, stage: TrainStage) -> None:
    """Raise ConfigError for a place that cannot be opened, or that refuses in advance; writes nothing."""
    if stage.checkpoint.storage is None:
        return
    try:
        storage = open_storage(stage.checkpoint.storage)
    except DataError as error:
        raise ConfigError(f"stages.{stage_name}.checkpoint.storage: {error}") from None
    if why := storage.refuses():
        raise _unwritable(stage_name, storage, why)


def check_storages(config: PipelineConfig) -> None:
    """Write and remove a small object where checkpoints will be stored. Raises ConfigError if a place refuses."""
    findings = Findings()
    for name, stage in config.stages.items():
        if isinstance(stage, TrainStage) and stage.checkpoint.storage is not None:
            storage = open_storage(f"{stage.checkpoint.storage.rstrip('/')}/{config.name}")
            if why := try_to_write(storage):
                findings.faults.append(_unwritable(name, storage, why))
    findings.refuse()


def _unwritable(stage_name: str, storage: Storage, why: str) -> ConfigError:
    return ConfigError(
        f"stages.{stage_name}.checkpoint.storage: {storage.root} cannot be written ({why}); correct the address or "
        "its permissions"
    )
