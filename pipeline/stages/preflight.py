"""Checks made before anything trains, from the config, indexes, specs and installed packages.

They are the functions that stages call when their turn comes, applied to what they will find then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.checkpoints.storage import Storage, open_storage, try_to_write
from pipeline.config.data import SQUASH, PlainConfig
from pipeline.config.export import BEST, EMA, SOUP
from pipeline.config.probe import BASELINES, LABELS, KnnConfig, OnlineKnnConfig, Pooling
from pipeline.config.references import TEACHER, source_stage
from pipeline.config.schema import EvaluateStage, ExportStage, PipelineConfig, ProbeStage, TrainStage
from pipeline.errors import ConfigError, DataError, ModelError, PipelineError
from pipeline.export import check_format, check_model
from pipeline.metrics.accuracy import KNN
from pipeline.metrics.schema import VAL
from pipeline.models.model_spec import ModelSpec
from pipeline.probe.limits import neighbours
from pipeline.stages.context import require_class_names, tracking_store
from pipeline.stages.data import (
    check_background,
    check_classes,
    class_meanings,
    evaluated_classes,
    stage_data,
    stage_labels,
    used_datasets,
)
from pipeline.stages.evaluation_task import evaluated_task
from pipeline.stages.folder import RunFolder
from pipeline.stages.overlap import Overlaps
from pipeline.stages.probe_data import check_numbers, check_probed_classes, probe_sources
from pipeline.stages.resolve import Branch, check_channels, check_teacher, reference_ids, stage_branches, stage_spec
from pipeline.stages.usable_samples import usable_warning
from pipeline.stream.source import Source, build_mixture
from pipeline.targets import target_kind
from pipeline.tasks.task import Trained
from pipeline.tracking.store import check_store
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


def preflight(config: PipelineConfig, datasets: Mapping[str, Dataset]) -> Findings:
    """Check every stage of a pipeline against the data sets that exist, or against the config alone."""
    return _Preflight(config, datasets).run()


class _Preflight:
    """Goes through the branches in order and collects the models that later ones start from."""

    def __init__(self, config: PipelineConfig, datasets: Mapping[str, Dataset]) -> None:
        self.config, self.datasets = config, datasets
        self.findings = Findings()
        self.trained_on: dict[str, set[str]] = {}  # branch id -> data sets seen by its model and by its sources
        self.overlaps = Overlaps(datasets)
        self.kinds: dict[str, dict[str, None]] = {}  # data set -> kinds of targets that stages need
        self.described: dict[tuple[str, str], Bundle] = {}  # (stage, reference) -> a model from outside the pipeline

    def run(self) -> Findings:
        for branch in stage_branches(self.config):
            match branch.stage:
                case TrainStage():
                    self._train(branch, branch.stage)
                case EvaluateStage():
                    self._evaluate(branch, branch.stage)
                case ProbeStage():
                    self._probe(branch, branch.stage)
                case ExportStage():
                    self._export(branch, branch.stage)
        with self._noting():
            check_store(tracking_store(self.config))
        self.findings.warnings += self.overlaps.warnings()
        found = (usable_warning(name, dataset, self.kinds.get(name, ())) for name, dataset in self.datasets.items())
        self.findings.warnings += [warning for warning in found if warning]
        return self.findings

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except PipelineError as error:
            self.findings.faults.append(error)

    def _train(self, branch: Branch, stage: TrainStage) -> None:
        with self._noting():
            check_channels(self.config, branch.stage_name)
        with self._noting():
            check_checkpoints(branch, stage)
        with self._noting():
            check_exclude(self.config, branch.stage_name, stage)
        classes: list[str] | None = None
        for name in used_datasets(stage.data):
            self._need(name, stage.task.targets)
        with self._noting():
            classes = self._classes(branch, stage)
        background = self.config.datasets[next(iter(stage.data.parts))].background
        settings = stage.task.measuring_settings
        found = self.findings.models.setdefault(branch.id, {})
        teachers = self._teachers(branch, stage)
        for origin, source in self._sources(branch, stage).items():
            for name, teacher in teachers.items():
                with self._noting():
                    key = f"{origin or 'random'}, taught by {name}" if len(teachers) > 1 else origin
                    found[key] = self._model(branch, classes, background, settings, source, teacher)
        upstream = [*self._upstream(stage.init_from), *self._upstream(stage.task.taught_by)]
        seen = {name for known in upstream for name in self.trained_on[known]}
        self.trained_on[branch.id] = seen | stage.data.parts.keys()
        if stage.data.val:
            self.overlaps.add(branch.stage_name, self.trained_on[branch.id], stage.data.val)
        if stage.eval.knn:
            self._online_knn(branch, stage.eval.knn)

    def _online_knn(self, branch: Branch, config: OnlineKnnConfig) -> None:
        where, names = f"stages.{branch.stage_name}.eval.knn", (config.train, config.test)
        self._labelled_pair(names, where)
        if dataset := self.datasets.get(config.train):
            with self._noting():
                neighbours(KnnConfig(k=config.k), dataset.index.num_samples, where)
        self.overlaps.add(branch.stage_name, {*self.trained_on[branch.id], config.train}, config.test)

    def _model(
        self,
        branch: Branch,
        classes: list[str] | None,
        background: tuple[int, ...],
        settings: Mapping[str, Any],
        source: Model | None,
        teacher: Model | None,
    ) -> Model:
        """The model that a branch trains, given any source and teacher; raises ConfigError if they do not fit."""
        parent, taught_by = source.spec if source else None, teacher.spec if teacher else None
        spec = stage_spec(branch, 1 if classes is None else len(classes), parent, taught_by)
        if teacher:
            check_teacher(branch, spec, classes if teacher.head_known else None, teacher.spec, teacher.classes)
        known, said = classes is not None, self.config.datasets
        data = [branch.stage.data.val, *branch.stage.data.parts] if isinstance(branch.stage, TrainStage) else []
        evaluation = next((how for name in data if name and (how := said[name].eval)), SQUASH)
        return Model(spec, classes, background, settings, parent, teacher, head_known=known, evaluation=evaluation)

    def _evaluate(self, branch: Branch, stage: EvaluateStage) -> None:
        models = [
            (name, model)
            for number, reference in enumerate(stage.models)
            for name, _, model in self._models(branch, reference, f"models[{number}]")
        ]
        classes: list[str] | None = None
        with self._noting():
            if models:
                trained: dict[str, Trained] = dict(models)
                task = evaluated_task(stage.task, trained, f"stages.{branch.id}")
                self._need(stage.data, task.targets)
                found = self._evaluated_classes(stage.data, task.targets)
                classes = None if task.names_classes else found
        for name, model in models:
            with self._noting():
                check_background(stage.data, self.config.datasets[stage.data], name, model.background)
            if classes and model.head_known:
                with self._noting():
                    heads = model.spec.num_classes
                    check_classes(f"stages.{branch.id}", stage.data, classes, name, heads, model.classes)
        for known in (known for reference in stage.models for known in self._upstream(reference)):
            self.overlaps.add(branch.id, self.trained_on[known], stage.data)

    def _probe(self, branch: Branch, stage: ProbeStage) -> None:
        where, names = f"stages.{branch.id}", (stage.data.train, stage.data.test)
        for number, reference in enumerate(stage.models):
            if reference in BASELINES:
                continue
            for name, _, model in self._models(branch, reference, f"models[{number}]"):
                with self._noting():
                    check_features(where, stage.features, name, model.spec)
            for known in self._upstream(reference):
                self.overlaps.add(branch.id, self.trained_on[known] | {stage.data.train}, stage.data.test)
        self._labelled_pair(names, f"{where}.data")
        if self.datasets.keys() >= set(names):
            train, test = (self.datasets[name].index.num_samples for name in names)
            with self._noting():
                check_numbers(stage.methods, train, test, f"{where}.methods")

    def _labelled_pair(self, names: tuple[str, str], where: str) -> None:
        """Check the labels of the data that features are fitted on and tested on, as far as they are known."""
        for name in names:
            self._need(name, [LABELS])
        with self._noting():
            if self.datasets.keys() >= set(names):
                probe_sources(names, (self.datasets[names[0]], self.datasets[names[1]]), where)
            else:
                train, test = (self._names(name, LABELS) for name in names)
                if train and test:
                    check_probed_classes(names, train, test, where)

    def _evaluated_classes(self, name: str, kinds: Sequence[str]) -> list[str] | None:
        """The classes that models are evaluated on; None while unknown."""
        dataset = self.datasets.get(name)
        if dataset or not kinds:
            return evaluated_classes(name, dataset, kinds) if dataset else []
        return self._names(name, kinds[0])

    def _export(self, branch: Branch, stage: ExportStage) -> None:
        models = self._models(branch, stage.model, "model")
        if stage.weights is not None:
            with self._noting():
                check_kept(self.config, branch, stage.model, stage.weights)
        if stage.register_as is not None:
            with self._noting():
                check_registered(self.config, branch, stage)
        for number, name in enumerate(stage.formats):
            where = f"stages.{branch.id}.formats[{number}]"
            try:
                check_format(name)
            except (ConfigError, ModelError) as error:
                self.findings.faults.append(ConfigError(f"{where}: {str(error).removeprefix('format: ')}"))
                continue
            for source, _, model in models:
                try:
                    check_model(name, model.spec, model.evaluation)
                except ModelError as error:
                    self.findings.faults.append(ConfigError(f"{where}: {name} cannot hold {source}: {error}"))

    def _classes(self, branch: Branch, stage: TrainStage) -> list[str] | None:
        """The classes of a training stage, None while unknown; also checks the order of its samples."""
        where, used = f"stages.{branch.stage_name}", used_datasets(stage.data)
        if self.datasets.keys() >= set(used):
            train, _, classes = stage_data(self.datasets, stage.data, stage.task, where)
            check_order(where, stage, train)
            return classes
        kind = next((kind for kind in stage.task.targets if target_kind(kind).classed), None)
        if kind is None:
            return []
        known = {name: names for name in used if (names := self._names(name, kind)) is not None}
        if known.keys() >= stage.data.parts.keys():
            data = stage.data if stage.data.val in known else stage.data.model_copy(update={"val": None})
            meanings = {
                name: class_meanings(name, self.config.datasets[name], kind, names) for name, names in known.items()
            }
            return stage_labels(known, meanings, data, where).classes
        return None

    def _names(self, name: str, kind: str) -> list[str] | None:
        """A data set's class names of one kind; from the config if the shards are missing."""
        dataset = self.datasets.get(name)
        return (
            require_class_names(name, dataset, [kind])[kind] if dataset else self.config.datasets[name].classes_of(kind)
        )

    def _need(self, name: str, kinds: Iterable[str]) -> None:
        """Note the kinds of targets that a stage needs from a data set."""
        self.kinds.setdefault(name, {}).update(dict.fromkeys(kinds))

    def _upstream(self, reference: str | None) -> list[str]:
        """The branches that a reference may stand for."""
        return [] if reference is None else reference_ids(self.config, reference)

    def _sources(self, branch: Branch, stage: TrainStage) -> Mapping[str, Model | None]:
        """The models that a branch may start from; if one may itself start from several, its key names the origin."""
        if stage.init_from is None:
            return {"": None}
        found = self._models(branch, stage.init_from, "init_from")
        times = Counter(name for name, _, _ in found)
        return {f"{name} (from {origin})" if times[name] > 1 else name: model for name, origin, model in found}

    def _teachers(self, branch: Branch, stage: TrainStage) -> Mapping[str, Model | None]:
        """The models that a branch may learn from, by id or path."""
        if stage.task.taught_by is None:
            return {"": None}
        return {name: model for name, _, model in self._models(branch, stage.task.taught_by, TEACHER)}

    def _models(self, branch: Branch, reference: str, setting: str) -> list[tuple[str, str, Model]]:
        """The models that a reference may stand for: id or path, its starting point, and the model."""
        candidates = self._upstream(reference)
        if candidates:
            known = self.findings.models
            return [(name, origin, model) for name in candidates for origin, model in known[name].items()]
        from pipeline.stages.sources import describe_source  # imports torch; most plans do not need it

        key = branch.stage_name, reference
        try:
            if key not in self.described:  # describing foreign weights reads all of them
                self.described[key] = describe_source(self.config, reference, branch.stage)
        except ModelError as error:
            self.findings.faults.append(ConfigError(f"stages.{branch.stage_name}.{setting}: {error}"))
            return []
        described = self.described[key]
        background, settings = described.preprocess.background, described.task_settings
        how = described.preprocess.eval
        return [(reference, "", Model(described.spec, described.classes, background, settings, evaluation=how))]


def check_kept(config: PipelineConfig, branch: Branch, reference: str, weights: str) -> None:
    """Raise ConfigError for weights that the exported stage's checkpoints will not hold."""
    where, source = f"stages.{branch.id}.weights", source_stage(config, reference)
    stage = config.stages[source] if source else None
    if not isinstance(stage, TrainStage):
        raise ConfigError(
            f"{where}: {weights} needs a training stage's checkpoints, but {reference} is not a stage of this pipeline"
        )
    if weights == EMA and stage.ema is None:
        raise ConfigError(
            f"{where}: found ema, but stages.{source} has no moving average; set stages.{source}.ema: 0.999"
        )
    if weights == BEST and stage.checkpoint.keep_best is None:
        best = VAL + stage.measured.selects
        raise ConfigError(
            f"{where}: found best, but no measure to choose it by; set stages.{source}.checkpoint.keep_best: {best}"
        )
    soup = SOUP.fullmatch(weights)
    if soup and stage.checkpoint.keep_last < int(soup[1]) and stage.checkpoint.keep_every is None:
        raise ConfigError(
            f"{where}: {weights} needs {soup[1]} checkpoints, but stages.{source}.checkpoint.keep_last is "
            f"{stage.checkpoint.keep_last}; set it to {soup[1]}"
        )


def check_registered(config: PipelineConfig, branch: Branch, stage: ExportStage) -> None:
    """Raise ConfigError for a model that no stage of the pipeline logs in MLflow."""
    where, source = f"stages.{branch.id}.register_as", source_stage(config, stage.model)
    if source is None:
        raise ConfigError(
            f"{where}: only a training stage's model can be registered, and {stage.model} is not a stage of this "
            "pipeline"
        )
    if stage.weights is not None:
        raise ConfigError(f"{where}: only the finished model can be registered; leave stages.{branch.id}.weights out")


def check_features(where: str, features: Pooling, name: str, spec: ModelSpec) -> None:
    """Raise ConfigError for features that a model lacks."""
    if features == "cls" and not spec.backbone.tokens.cls:
        raise ConfigError(f"{where}.features: found cls, but {name} has no class token; use patches or both")


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


def check_checkpoints(branch: Branch, stage: TrainStage) -> None:
    """Raise ConfigError if checkpoints cannot be stored, or nothing measures which is best."""
    where = f"stages.{branch.stage_name}"
    measured_elsewhere = stage.eval.knn is not None and stage.checkpoint.keep_best == VAL + KNN.name
    if stage.checkpoint.keep_best and stage.data.val is None and not measured_elsewhere:
        raise ConfigError(
            f"{where}.checkpoint.keep_best: {stage.checkpoint.keep_best} is measured on validation data, but there is "
            f"none; set {where}.data.val"
        )
    if stage.checkpoint.storage is not None:
        try:
            storage = open_storage(stage.checkpoint.storage)
        except DataError as error:
            raise ConfigError(f"{where}.checkpoint.storage: {error}") from None
        if why := storage.refuses():
            raise unwritable_storage(branch.stage_name, storage, why)


def check_storages(config: PipelineConfig) -> None:
    """Write and remove a small object where checkpoints will be stored. Raises ConfigError if a place refuses."""
    findings = Findings()
    for name, stage in config.stages.items():
        if isinstance(stage, TrainStage) and stage.checkpoint.storage is not None:
            storage = open_storage(f"{stage.checkpoint.storage.rstrip('/')}/{config.name}")
            if why := try_to_write(storage):
                findings.faults.append(unwritable_storage(name, storage, why))
    findings.refuse()


def unwritable_storage(stage_name: str, storage: Storage, why: str) -> ConfigError:
    return ConfigError(
        f"stages.{stage_name}.checkpoint.storage: {storage.root} cannot be written ({why}); correct the address or "
        "its permissions"
    )
