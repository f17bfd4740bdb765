"""The data of a stage: its sources, and the classes that its data sets share by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.fields import allowed
from pipeline.config.schema import PipelineConfig
from pipeline.config.task import TaskConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, ModelError
from pipeline.shards.index import DatasetIndex
from pipeline.stages.context import require_class_names
from pipeline.stages.usable_samples import members_of
from pipeline.stream.source import Source, build_mixture
from pipeline.targets import target_kind
from pipeline.targets.base import ClassMap, Target
from pipeline.tasks.task import task_of
from pipeline.tracking.runs import DataRead
from pipeline.train.job import Dataset

Names = Mapping[str, Sequence[str]]  # class names by data set


class Labelling(NamedTuple):
    """The classes of a stage for one kind of target, and how each data set's labels map to them."""

    classes: list[str]
    train: dict[str, ClassMap]
    val: ClassMap | None = None


def used_datasets(data: DataConfig) -> list[str]:
    """The names of a training stage's data sets, validation last."""
    return list(dict.fromkeys([*data.parts, *([data.val] if data.val else [])]))


def stage_labels(
    names: Names, meanings: Mapping[str, Sequence[str | None]], data: DataConfig, where: str, least: int = 2
) -> Labelling:
    """The labelling of a stage from its data sets' class names; `where` is the stage's dotted path.

    `meanings` says what each class counts as, None if it is ignored. After `label_map` has renamed them, classes with
    equal names merge into one; numbers follow the first appearance.
    Raises ConfigError for an unknown class in a label map or the validation set, and for fewer than `least` classes.
    """
    renamed = {name: _renamed(meanings[name], data, name, where) for name in data.parts}
    classes = list(dict.fromkeys(label for labels in renamed.values() for label in labels if label is not None))
    refuse_too_few(classes, where, data.parts, least)
    train = {name: _class_map(names[name], labels, classes) for name, labels in renamed.items()}
    if data.val is None:
        return Labelling(classes, train)
    known = set(classes)
    both = {old: new for part in data.parts.values() for old, new in part.label_map.items()}
    val_names = [name if name is None or name in known else both.get(name, name) for name in meanings[data.val]]
    unknown = [name for name in val_names if name is not None and name not in known]
    if unknown:
        raise ConfigError(
            f"{where}.data.val: its class {unknown[0]!r} is not among the {len(classes)} classes of the training "
            f"data; {allowed(unknown[0], classes[:100])}; correct `classes` of datasets.{data.val}"
        )
    return Labelling(classes, train, _class_map(names[data.val], val_names, classes))


def stage_data(
    datasets: Mapping[str, Dataset], data: DataConfig, task: TaskConfig, where: str
) -> tuple[list[Source], Source | None, list[str]]:
    """Training sources, validation source and class names of a stage.

    The classes come from the task's first kind of target that has any. Raises as `stage_labels` and
    `require_class_names` do.
    """
    kinds = task.targets
    names = {name: require_class_names(name, datasets[name], kinds) for name in used_datasets(data)}
    labels: dict[str, Labelling] = {}
    for kind in (kind for kind in kinds if target_kind(kind).classed):
        own = {name: found[kind] for name, found in names.items()}
        meanings = {name: class_meanings(name, datasets[name].config, kind, own[name]) for name in own}
        labels[kind] = stage_labels(own, meanings, data, where, target_kind(kind).least_classes)
    classes = next((labelling.classes for labelling in labels.values()), [])
    check_task(task, classes, where)

    def targets(name: str, *, val: bool = False) -> dict[str, Target]:
        maps = {kind: found.val if val else found.train[name] for kind, found in labels.items()}
        return build_targets(name, datasets[name], kinds, maps)

    train = [
        Source(name, datasets[name].index, datasets[name].config, part.augment or data.augment, weight, targets(name))
        for (name, part), weight in zip(data.parts.items(), data.weights, strict=True)
    ]
    if data.val is None:
        return train, None, classes
    val = datasets[data.val]
    return train, Source(data.val, val.index, val.config, data.augment, 1, targets(data.val, val=True)), classes


def epoch_samples(config: PipelineConfig, stage: TrainStage, indexes: Mapping[str, DatasetIndex]) -> int | None:
    """The samples of a training stage's epoch; None without the indexes of all its data sets."""
    if not indexes.keys() >= stage.data.parts.keys():
        return None
    sources = [
        Source(name, indexes[name], config.datasets[name], part.augment or stage.data.augment)
        for name, part in stage.data.parts.items()
    ]
    return build_mixture(sources, stage.data, seed=0).epoch_slots


def check_task(task: TaskConfig, classes: Sequence[str], where: str) -> None:
    """Raise ConfigError for settings of a task that do not fit the class names; `where` is the stage's dotted path."""
    try:
        task_of(task).check_classes(classes)
    except ModelError as error:
        raise ConfigError(f"{where}.task.{error}") from None


def class_meanings(name: str, dataset: DatasetConfig, kind: str, names: Sequence[str]) -> list[str | None]:
    """What each of a data set's classes counts as. Raises ConfigError if its settings name unknown classes."""
    config = dataset.targets.of(kind)
    try:
        return list(names) if config is None else config.meanings(names)
    except ConfigError as error:
        raise ConfigError(f"datasets.{name}.targets.{kind}.{error}") from None


def plain_source(name: str, dataset: Dataset, classes: Sequence[str], kinds: Sequence[str]) -> Source:
    """A data set whose classes, grouped or not, are the model's."""
    numbers = {label: number for number, label in enumerate(classes)}
    maps: dict[str, ClassMap | None] = {}
    for kind, names in require_class_names(name, dataset, kinds).items():
        labels = class_meanings(name, dataset.config, kind, names)
        maps[kind] = ClassMap(
            tuple(names), tuple(-1 if label is None else numbers[label] for label in labels), len(classes)
        )
    return Source(name, dataset.index, dataset.config, AugmentConfig(), 1, build_targets(name, dataset, kinds, maps))


def evaluated_classes(name: str, dataset: Dataset, kinds: Sequence[str]) -> list[str]:
    """The classes of a single data set, grouped or not: those of the first kind that has any."""
    for kind, names in require_class_names(name, dataset, kinds).items():
        return list(
            dict.fromkeys(label for label in class_meanings(name, dataset.config, kind, names) if label is not None)
        )
    return []


def build_targets(
    name: str, dataset: Dataset, kinds: Sequence[str], maps: Mapping[str, ClassMap | None]
) -> dict[str, Target]:
    """The targets of a data set by kind. Raises ConfigError for settings that do not fit its classes."""
    found = {}
    for kind in kinds:
        target = target_kind(kind)
        config = dataset.config.targets.of(kind) or target.config()
        try:
            found[kind] = target.build(members_of(dataset, kind), config, maps.get(kind))
        except ConfigError as error:
            raise ConfigError(f"datasets.{name}.targets.{error}") from None
    return found


def refuse_too_few(classes: Sequence[str], where: str, datasets: Iterable[str], least: int = 2) -> None:
    """Raise ConfigError for fewer than `least` classes: a single class leaves nothing to tell apart."""
    if not classes:
        raise ConfigError(
            f"{where}.data: all classes of {' + '.join(datasets)} are ignored; name some in the groups of their targets"
        )
    if len(classes) < least:
        raise ConfigError(
            f"{where}.data: {' + '.join(datasets)} has only the class {classes[0]!r}, but at least two are needed; "
            "add data of another class, or correct the labels and index the shards again"
        )


def check_classes(
    where: str, dataset: str, classes: Sequence[str], model: str, num_classes: int, model_classes: Sequence[str] | None
) -> None:
    """Check that evaluated data has the model's classes: the same number, in the same order.

    Raises ConfigError otherwise; `where` is the stage's dotted path.
    """
    if num_classes != len(classes):
        raise ConfigError(
            f"{where}.data: {dataset} has {len(classes)} classes, but the head of {model} has {num_classes}; use data "
            "with the classes that it was trained on, or fine-tune it on these"
        )
    ours, theirs = set(classes), set(model_classes or [])
    for number, (its, here) in enumerate(zip(model_classes or [], classes, strict=False)):
        if its != here and (its in ours or here in theirs):
            raise ConfigError(
                f"{where}.data: class {number} of {dataset} is {here!r}, but that of {model} is {its!r}; name the "
                f"`classes` of datasets.{dataset} in the model's order, and label its samples accordingly"
            )


def check_background(name: str, dataset: DatasetConfig, model: str, expected: tuple[int, ...]) -> None:
    """Raise ConfigError if a data set's background differs from the one a model was trained with.

    All models of an evaluation see the same pixels.
    """
    if dataset.background != expected:
        raise ConfigError(
            f"datasets.{name}.background: found {list(dataset.background)}, but {model} was trained with transparent "
            f"pixels showing {list(expected)}; set it to that to evaluate {model}"
        )


def _renamed(labels: Sequence[str | None], data: DataConfig, name: str, where: str) -> list[str | None]:
    label_map, known = data.parts[name].label_map, set(labels)
    for old in label_map:
        if old not in known:
            names = [label for label in labels if label is not None]
            raise ConfigError(
                f"{where}.data.mixture.{name}.label_map: {old!r} is not a class of {name}; {allowed(old, names[:100])}"
            )
    return [label and label_map.get(label, label) for label in labels]


def _class_map(names: Sequence[str], labels: Sequence[str | None], classes: list[str]) -> ClassMap:
    """Map each of a data set's own classes to the class it counts as."""
    numbers = {label: number for number, label in enumerate(classes)}
    meant = tuple(-1 if label is None else numbers[label] for label in labels)
    return ClassMap(tuple(names), meant, len(classes))


def data_read(name: str, data: Dataset | Source, context: str) -> DataRead:
    """A data set as MLflow records it; `context` says what a stage reads it for."""
    return DataRead(name, data.config.shards, data.index.digest, data.index.num_samples, context)
