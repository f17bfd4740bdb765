"""What the checks of a pipeline's stages have found, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.data import PlainConfig
from pipeline.config.probe import LABELS
from pipeline.config.schema import PipelineConfig
from pipeline.errors import ConfigError, ModelError, PipelineError
from pipeline.models.model_spec import ModelSpec
from pipeline.stages.context import require_class_names
from pipeline.stages.overlap import Overlaps
from pipeline.stages.probe_data import check_probed_classes, probe_sources
from pipeline.stages.resolve import Branch, reference_ids
from pipeline.train.job import Dataset

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle


class Model(NamedTuple):
    """What is known about a model in advance; `classes` is None if their names are unknown."""

    spec: ModelSpec
    classes: list[str] | None
    background: tuple[int, ...]  # shown by transparent pixels
    task_settings: Mapping[str, Any]  # the settings it is measured with
    source: ModelSpec | None = None  # the spec of the model that it starts from
    teacher: Model | None = None  # the model that it learns from
    head_known: bool = True  # false while the data that determines the number of classes is missing
    evaluation: PlainConfig | None = None  # how images are brought to its size, if known


@dataclass
class Findings:
    """The errors that a pipeline's stages would raise, and the models that they would train.

    `models` maps branch ids to possible starting points ("" for none) and the model each then trains; branches with a
    fault may be missing.
    """

    faults: list[PipelineError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    models: dict[str, dict[str, Model]] = field(default_factory=dict)

    def refuse(self) -> None:
        """Raise all faults as one error, one sentence per line; does nothing if there are none."""
        kinds = {type(fault) for fault in self.faults}
        if kinds:
            kind = kinds.pop() if len(kinds) == 1 else ConfigError
            raise kind("\n".join(dict.fromkeys(map(str, self.faults))))


class Checks:
    """Goes with the checks from branch to branch, and collects the models that later ones start from."""

    def __init__(self, config: PipelineConfig, datasets: Mapping[str, Dataset]) -> None:
        self.config, self.datasets = config, datasets
        self.findings = Findings()
        self.trained_on: dict[str, set[str]] = {}  # branch id -> data sets seen by its model and by its sources
        self.overlaps = Overlaps(datasets)
        self.kinds: dict[str, dict[str, None]] = {}  # data set -> kinds of targets that stages need
        self._described: dict[tuple[str, str], Bundle] = {}  # (stage, reference) -> a model from outside the pipeline

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within this context an error of the user becomes a fault."""
        try:
            yield
        except PipelineError as error:
            self.findings.faults.append(error)

    def need(self, name: str, kinds: Iterable[str]) -> None:
        """Note the kinds of targets that a stage needs from a data set."""
        self.kinds.setdefault(name, {}).update(dict.fromkeys(kinds))

    def class_names(self, name: str, kind: str) -> list[str] | None:
        """A data set's class names of one kind; from the config if the shards are missing."""
        dataset = self.datasets.get(name)
        return (
            require_class_names(name, dataset, [kind])[kind] if dataset else self.config.datasets[name].classes_of(kind)
        )

    def upstream(self, reference: str | None) -> list[str]:
        """The branches that a reference may stand for."""
        return [] if reference is None else reference_ids(self.config, reference)

    def models(self, branch: Branch, reference: str, setting: str) -> list[tuple[str, str, Model]]:
        """The models that a reference may stand for: id or path, its starting point, and the model."""
        candidates = self.upstream(reference)
        if candidates:
            known = self.findings.models
            return [(name, origin, model) for name in candidates for origin, model in known[name].items()]
        from pipeline.stages.sources import describe_source  # imports torch; most plans do not need it

        key = branch.stage_name, reference
        try:
            if key not in self._described:  # describing foreign weights reads all of them
                self._described[key] = describe_source(self.config, reference, branch.stage)
        except ModelError as error:
            self.findings.faults.append(ConfigError(f"stages.{branch.stage_name}.{setting}: {error}"))
            return []
        described = self._described[key]
        background, settings = described.preprocess.background, described.task_settings
        how = described.preprocess.eval
        return [(reference, "", Model(described.spec, described.classes, background, settings, evaluation=how))]

    def labelled_pair(self, names: tuple[str, str], where: str) -> None:
        """Check the labels of the data that features are fitted on and tested on, as far as they are known."""
        for name in names:
            self.need(name, [LABELS])
        with self.noting():
            if self.datasets.keys() >= set(names):
                probe_sources(names, (self.datasets[names[0]], self.datasets[names[1]]), where)
            else:
                train, test = (self.class_names(name, LABELS) for name in names)
                if train and test:
                    check_probed_classes(names, train, test, where)
