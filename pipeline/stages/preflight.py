"""Checks made before anything trains, from the config, indexes, specs and installed packages.

They are the functions that stages call when their turn comes, applied to what they will find then.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.schema import PipelineConfig
from pipeline.stages.context import is_tracked, tracking_store
from pipeline.stages.findings import Checks, Findings
from pipeline.stages.resolve import stage_branches
from pipeline.stages.stage_type import stage_type
from pipeline.stages.usable_samples import usable_warning
from pipeline.tracking.store import check_store
from pipeline.train.job import Dataset


def preflight(config: PipelineConfig, datasets: Mapping[str, Dataset]) -> Findings:
    """Check every stage of a pipeline against the data sets that exist, or against the config alone."""
    checks = Checks(config, datasets)
    for branch in stage_branches(config):
        stage_type(branch.stage).check(checks, branch)
    if not is_tracked(config):
        with checks.noting():
            check_store(tracking_store(config))
    warned = (usable_warning(name, dataset, checks.kinds.get(name, ())) for name, dataset in datasets.items())
    checks.findings.warnings += [*checks.overlaps.warnings(), *filter(None, warned)]
    return checks.findings
