"""Checks across sections: references to stages and data sets, and resources against batches."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from pipeline.config.fields import allowed
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage

TIMM = "timm:"  # prefix of a reference to a timm model
WEIGHTS_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")  # all but the first are rejected when read


def stage_sources(name: str, stage: StageConfig) -> list[tuple[str, str]]:
    """The models that a stage reads, as (dotted path, reference): stages, STAGE/VARIANT, paths or timm names."""
    return [(f"stages.{name}.{setting}", reference) for setting, reference in stage.models_read.items()]


def source_stage(config: PipelineConfig, reference: str) -> str | None:
    """The stage that a reference names (with or without its variant); None for a path or a timm name."""
    name = reference.split("/")[0]
    return name if name in config.stages else None


def is_path(reference: str) -> bool:
    """Whether a reference is a path to an export: it starts with '.' or '/', or lies in a folder that exists."""
    return reference.startswith((".", "/")) or ("/" in reference and Path(reference).parent.is_dir())


def is_foreign(config: PipelineConfig, reference: str) -> bool:
    """Whether a reference means foreign weights: `timm:NAME`, or a file rather than an export's folder."""
    return source_stage(config, reference) is None and names_weights(reference)


def names_weights(reference: str) -> bool:
    """Whether a reference that does not name a stage names foreign weights."""
    return reference.startswith(TIMM) or reference.endswith(WEIGHTS_FILES)


def reference_faults(config: PipelineConfig) -> Iterator[str]:
    """One sentence per wrong reference or impossible combination across sections."""
    faults = [*_dataset_faults(config), *_stage_faults(config)]
    yield from faults or _cycle_faults(config)
    for name, stage in config.stages.items():
        yield from stage.faults(name, config.stages, config.cluster)


def fanned_out(config: PipelineConfig, reference: str) -> bool:
    """Whether a reference names a stage with several variants without choosing one, and so stands for the best."""
    stage = config.stages.get(reference)
    return isinstance(stage, TrainStage) and len(stage.model.variants) > 1


def _dataset_faults(config: PipelineConfig) -> Iterator[str]:
    for name, stage in config.stages.items():
        for setting, dataset in stage.data_read.items():
            if dataset not in config.datasets:
                path = f"stages.{name}.{setting}"
                yield f"{path}: found '{dataset}', which is not a data set; {allowed(dataset, config.datasets)}."


def _stage_faults(config: PipelineConfig) -> Iterator[str]:
    without_val: dict[str, str] = {}  # stage whose best variant is needed but cannot be determined -> the fault
    for name, stage in config.stages.items():
        for path, reference in stage_sources(name, stage):
            problem = _reference_problem(config, reference)
            source = config.stages.get(reference)
            if problem:
                yield f"{path}: found '{reference}', {problem}."
            elif fanned_out(config, reference) and isinstance(source, TrainStage) and source.data.val is None:
                measure = source.task.measured.selected.words
                without_val.setdefault(
                    reference,
                    f"stages.{reference}.data.val: missing, but {path} uses the best variant of {reference} by "
                    f"validation {measure}; {allowed('', config.datasets)}.",
                )
    yield from without_val.values()


def _reference_problem(config: PipelineConfig, reference: str) -> str | None:
    """What is wrong with a reference to a model; None if it is valid."""
    trained = [name for name, stage in config.stages.items() if isinstance(stage, TrainStage)]
    name, _, variant = reference.partition("/")
    stage = config.stages.get(name)
    if isinstance(stage, TrainStage):
        references = [name, *(f"{name}/{option}" for option in stage.model.variants)]
        if variant and reference not in references:
            return f"but stage {name} has no variant '{variant}'; {allowed(reference, references)}"
        return None
    if stage is not None:
        return f"whose type {stage.type} does not train a model; {allowed('', trained)}"
    if not is_path(reference) and not is_foreign(config, reference):
        return (
            "which is not a stage, a path to an export (starting with './' or '/', or in an existing folder) or "
            f"other weights (timm:NAME, or a safetensors file); {allowed(reference, trained)}"
        )
    return None


def _cycle_faults(config: PipelineConfig) -> Iterator[str]:
    graph = {
        name: [source for _, reference in stage_sources(name, stage) if (source := source_stage(config, reference))]
        for name, stage in config.stages.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1]  # each stage is the starting point of the next
        last, before = cycle[-1], cycle[-2]
        path = next(p for p, ref in stage_sources(last, config.stages[last]) if source_stage(config, ref) == before)
        yield f"{path}: the stages form a cycle, {' -> '.join(cycle)}; one of them must start from something else."
