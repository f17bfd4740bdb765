"""The checks of a training stage: its data, the models it may train, and its checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.config.data import SQUASH
from pipeline.config.probe import KnnConfig, OnlineKnnConfig
from pipeline.config.schema import PipelineConfig
from pipeline.config.train_stage import TEACHER, TrainStage
from pipeline.errors import ConfigError, DataError
from pipeline.metrics.accuracy import KNN
from pipeline.metrics.schema import VAL
from pipeline.probe.limits import neighbours
from pipeline.stages.data import class_meanings, stage_data, stage_labels, used_datasets
from pipeline.stages.findings import Checks, Model
from pipeline.stages.folder import RunFolder
from pipeline.stages.resolve import Branch, check_channels, check_teacher, stage_spec
from pipeline.stages.storages import check_address
from pipeline.stream.source import Source, build_mixture
from pipeline.targets import target_kind


class TrainingCheck:
    """Checks one branch of a training stage."""

    def __init__(self, checks: Checks, branch: Branch, stage: TrainStage) -> None:
        self.checks, self.branch, self.stage = checks, branch, stage
        self.where = f"stages.{branch.stage_name}"

    def run(self) -> None:
        checks, branch, stage = self.checks, self.branch, self.stage
        with checks.noting():
            check_channels(checks.config, branch.stage_name)
        with checks.noting():
            check_keep_best(self.where, stage)
            check_address(branch.stage_name, stage)
        with checks.noting():
            check_exclude(checks.config, branch.stage_name, stage)
        for name in used_datasets(stage.data):
            checks.need(name, stage.task.targets)
        self._find_models()
        upstream = [*checks.upstream(stage.init_from), *checks.upstream(stage.task.taught_by)]
        trained_on = {name for known in upstream for name in checks.trained_on[known]} | stage.data.parts.keys()
        checks.trained_on[branch.id] = trained_on
        if stage.data.val:
            checks.overlaps.add(branch.stage_name, trained_on, stage.data.val)
        if stage.eval.knn:
            self._online_knn(stage.eval.knn)

    def _find_models(self) -> None:
        """Note the model that the branch trains from each starting point and teacher."""
        classes: list[str] | None = None
        with self.checks.noting():
            classes = self._classes()
        found = self.checks.findings.models.setdefault(self.branch.id, {})
        teachers = self._teachers()
        for origin, source in self._sources().items():
            for name, teacher in teachers.items():
                with self.checks.noting():
                    key = f"{origin or 'random'}, taught by {name}" if len(teachers) > 1 else origin
                    found[key] = self._model(classes, source, teacher)

    def _classes(self) -> list[str] | None:
        """The classes of the stage, None while unknown; also checks the order of its samples."""
        stage, datasets, used = self.stage, self.checks.datasets, used_datasets(self.stage.data)
        if datasets.keys() >= set(used):
            train, _, classes = stage_data(datasets, stage.data, stage.task, self.where)
            check_order(self.where, stage, train)
            return classes
        kind = next((kind for kind in stage.task.targets if target_kind(kind).classed), None)
        if kind is None:
            return []
        known = {name: names for name in used if (names := self.checks.class_names(name, kind)) is not None}
        if known.keys() >= stage.data.parts.keys():
            data = stage.data if stage.data.val in known else stage.data.model_copy(update={"val": None})
            configs = self.checks.config.datasets
            meanings = {name: class_meanings(name, configs[name], kind, names) for name, names in known.items()}
            return stage_labels(known, meanings, data, self.where).classes
        return None

    def _sources(self) -> Mapping[str, Model | None]:
        """The models that a branch may start from; if one may itself start from several, its key names the origin."""
        if self.stage.init_from is None:
            return {"": None}
        found = self.checks.models(self.branch, self.stage.init_from, "init_from")
        times = Counter(name for name, _, _ in found)
        return {f"{name} (from {origin})" if times[name] > 1 else name: model for name, origin, model in found}

    def _teachers(self) -> Mapping[str, Model | None]:
        """The models that a branch may learn from, by id or path."""
        if self.stage.task.taught_by is None:
            return {"": None}
        return {name: model for name, _, model in self.checks.models(self.branch, self.stage.task.taught_by, TEACHER)}

    def _model(self, classes: list[str] | None, source: Model | None, teacher: Model | None) -> Model:
        """The model that a branch trains, given any source and teacher; raises ConfigError if they do not fit."""
        stage, datasets = self.stage, self.checks.config.datasets
        parent, taught_by = source.spec if source else None, teacher.spec if teacher else None
        spec = stage_spec(self.branch, 1 if classes is None else len(classes), parent, taught_by)
        if teacher:
            check_teacher(self.branch, spec, classes if teacher.head_known else None, teacher.spec, teacher.classes)
        data = [name for name in (stage.data.val, *stage.data.parts) if name]
        return Model(
            spec,
            classes,
            datasets[next(iter(stage.data.parts))].background,
            stage.task.measuring_settings,
            parent,
            teacher,
            head_known=classes is not None,
            evaluation=next((how for name in data if (how := datasets[name].eval)), SQUASH),
        )

    def _online_knn(self, config: OnlineKnnConfig) -> None:
        checks, stage_name = self.checks, self.branch.stage_name
        where, names = f"{self.where}.eval.knn", (config.train, config.test)
        checks.labelled_pair(names, where)
        if dataset := checks.datasets.get(config.train):
            with checks.noting():
                neighbours(KnnConfig(k=config.k), dataset.index.num_samples, where)
        checks.overlaps.add(stage_name, {*checks.trained_on[self.branch.id], config.train}, config.test)


def check_order(where: str, stage: TrainStage, train: list[Source]) -> None:
    """Raise ConfigError if the samples cannot be laid out in lanes, or `data.exclude` is not a manifest of them."""
    try:
        build_mixture(train, stage.data, seed=0)
    except DataError as error:
        setting = "" if str(error).startswith("data.") else "data.exclude: "
        raise ConfigError(f"{where}.{setting}{error}") from None


def check_exclude(config: PipelineConfig, stage_name: str, stage: TrainStage) -> None:
    """Raise ConfigError for a manifest that this same stage writes: it grows, and is moved if the stage runs again."""
    own = RunFolder(Path(config.runs_dir) / config.name).stage(stage_name).path.absolute()
    if stage.data.exclude and Path(stage.data.exclude).absolute().is_relative_to(own):
        raise ConfigError(
            f"stages.{stage_name}.data.exclude: {stage.data.exclude} is in the stage's own folder, which is set aside "
            "when its settings change; give this run another name, or copy the manifest elsewhere"
        )


def check_keep_best(where: str, stage: TrainStage) -> None:
    """Raise ConfigError if nothing measures which checkpoint is best."""
    measured_elsewhere = stage.eval.knn is not None and stage.checkpoint.keep_best == VAL + KNN.name
    if stage.checkpoint.keep_best and stage.data.val is None and not measured_elsewhere:
        raise ConfigError(
            f"{where}.checkpoint.keep_best: {stage.checkpoint.keep_best} is measured on validation data, but there is "
            f"none; set {where}.data.val"
        )
