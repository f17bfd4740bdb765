"""What each type of stage declares, and how it is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig, type_module
from pipeline.stages.findings import Checks, Model
from pipeline.stages.resolve import Branch
from pipeline.train.job import Dataset

if TYPE_CHECKING:
    from pipeline.stages.context import RunContext
    from pipeline.stages.stage_run import StageRun


class Known(NamedTuple):
    """What is known of a pipeline before it runs: its data sets, and the models that each branch may train."""

    config: PipelineConfig
    datasets: Mapping[str, Dataset]
    models: Mapping[str, Mapping[str, Model]]


class StageType(ABC):
    """A type of stage; its module in `pipeline.stages.types` holds one as `TYPE`.

    Plans and runs call `check` for every branch, after those that it depends on, before anything starts. A plan calls
    `expected_inputs` for a branch that has run before, to say whether it would run again. Only runs call `start`.
    """

    section: ClassVar[type[StageConfig]]

    def check(self, checks: Checks, branch: Branch) -> None:
        """Note the faults that a branch would run into, and the model that it trains."""
        return

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What `StageRun.inputs` may return, with digests of models as recorded; empty if that cannot be told yet."""
        return []

    @abstractmethod
    def start(self, context: RunContext, branch: Branch) -> StageRun:
        """The branch, ready to run; called once all its dependencies have finished."""


def stage_type(stage: StageConfig) -> StageType:
    """The type of a stage."""
    found: StageType = type_module(stage.type).TYPE
    return found
