"""Which started stages would run again, worked out without reading weights: the part a plan can decide."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.schema import PipelineConfig
from pipeline.config.train_stage import TEACHER
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.inputs import changes, differences
from pipeline.stages.resolve import Branch, dependencies, named_models, stage_branches
from pipeline.stages.stage_type import Known, stage_type


def rerun_reasons(known: Known, statuses: Mapping[str, Status]) -> dict[str, str]:
    """Branch id -> the end of `runs again, because`, for branches whose inputs no longer match their status.

    A branch runs again if a branch it depends on does. Changes to data that has not been made yet, and to foreign
    weights, go unnoticed.
    """
    config, reasons = known.config, dict[str, str]()
    for branch in stage_branches(config):
        status = statuses.get(branch.id)
        if status is None:
            continue
        for needed in dependencies(config, branch.id):
            if needed in reasons or needed not in statuses or statuses[needed].state != FINISHED:
                reasons[branch.id] = f"{needed} is not finished" if needed not in reasons else f"{needed} runs again"
                break
        else:
            expected = stage_type(branch.stage).expected_inputs(known, branch, status.inputs)
            if _starts_elsewhere(config, branch, status):
                reasons[branch.id] = f"it started from {status.init_from}"
            elif expected and status.inputs not in expected:
                nearest = min(expected, key=lambda inputs: len(differences(status.inputs, inputs)))
                reasons[branch.id] = changes(status.inputs, nearest)
    return reasons


def _starts_elsewhere(config: PipelineConfig, branch: Branch, status: Status) -> bool:
    """Whether a branch started from a model that its reference no longer stands for."""
    if status.init_from is None:
        return False
    references = [reference for setting, reference in branch.stage.models_read.items() if setting != TEACHER]
    return status.init_from not in named_models(config, references)
