"""The data of a stage: its sources, and the classes that several data sets share by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.fields import allowed
from pipeline.config.targets import TargetConfig
from pipeline.config.task import TaskConfig
from pipeline.errors import ConfigError
from pipeline.stages.context import class_names
from pipeline.stages.usable import keys_of
from pipeline.stream.source import Source
from pipeline.targets.base import ClassMap, Target
from pipeline.targets.class_id import ClassId
from pipeline.train.job import Dataset

VAL = ""  # stands for the validation data, which may be one of the training data sets with classes of its own


class Labelling(NamedTuple):
    """The classes of a stage, and which of them each data set's labels mean."""

    classes: list[str]
    train: dict[str, ClassMap]
    val: ClassMap | None = None


def used_datasets(data: DataConfig) -> list[str]:
    """The names of a training stage's data sets, validation last."""
    return list(dict.fromkeys([*data.parts, *([data.val] if data.val else [])]))


def stage_labels(names: Mapping[str, Sequence[str]], data: DataConfig, where: str) -> Labelling:
    """The labelling of a stage, whose dotted path is `where`, from its data sets' class names.

    Classes of equal names are one class, after `label_map` has renamed them; they are numbered as they first appear.
    Raises ConfigError for an unknown class in a label map or the validation set, and for fewer than two classes.
    """
    renamed = {name: _renamed(names[name], data, name, where) for name in data.parts}
    classes = list(dict.fromkeys(label for labels in renamed.values() for label in labels))
    refuse_one_class(classes, where, data.parts)
    train = {name: _class_map(labels, classes) for name, labels in renamed.items()}
    if data.val is None:
        return Labelling(classes, train)
    known = set(classes)
    both = {old: new for part in data.parts.values() for old, new in part.label_map.items()}
    val_names = [name if name in known else both.get(name, name) for name in names[data.val]]
    unknown = [name for name in val_names if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}.data.val: its class {unknown[0]!r} is none of the {len(classes)} classes of the training data; "
            f"{allowed(unknown[0], classes[:100])}; correct `classes` of datasets.{data.val}"
        )
    return Labelling(classes, train, _class_map(val_names, classes))


def stage_data(
    datasets: Mapping[str, Dataset], data: DataConfig, task: TaskConfig, where: str
) -> tuple[list[Source], Source | None, list[str]]:
    """Training sources, validation source and class names of a stage; raises as `stage_labels` and `class_names` do.

    Of a task that needs no labels there are no classes, and the labels of its data are not looked at.
    """
    classes, targets = stage_targets(datasets, data, where) if task.targets else ([], {})
    train = []
    for (name, part), weight in zip(data.parts.items(), data.weights, strict=True):
        index, config, augment = datasets[name].index, datasets[name].config, part.augment or data.augment
        train.append(Source(name, index, config, augment, weight, targets.get(name, {})))
    if data.val is None:
        return train, None, classes
    val = datasets[data.val]
    return train, Source(data.val, val.index, val.config, data.augment, 1, targets.get(VAL, {})), classes


def stage_targets(
    datasets: Mapping[str, Dataset], data: DataConfig, where: str
) -> tuple[list[str], dict[str, dict[str, Target]]]:
    """The classes of a stage, and the targets of its training data sets by name and of the validation data."""
    labels = stage_labels({name: class_names(name, datasets[name]) for name in used_datasets(data)}, data, where)
    targets = {name: class_targets(datasets[name], classes) for name, classes in labels.train.items()}
    if data.val is not None and labels.val is not None:
        targets[VAL] = class_targets(datasets[data.val], labels.val)
    return labels.classes, targets


def plain_source(name: str, dataset: Dataset, classes: Sequence[str]) -> Source:
    """A data set whose labels are the model's."""
    targets = class_targets(dataset, ClassMap.same(tuple(classes)))
    return Source(name, dataset.index, dataset.config, AugmentConfig(), 1, targets)


def class_targets(dataset: Dataset, classes: ClassMap) -> dict[str, Target]:
    """The targets of a data set, by kind."""
    return {ClassId.kind: ClassId.build((keys_of(dataset).label,), TargetConfig(), classes)}


def refuse_one_class(classes: Sequence[str], where: str, datasets: Iterable[str]) -> None:
    """Raise ConfigError for fewer than two classes: there is nothing to tell apart."""
    if len(classes) < 2:
        raise ConfigError(
            f"{where}.data: {' + '.join(datasets)} has the one class {classes[0]!r}, and a classifier needs at least "
            "two; add data of another class, or correct the labels and index the shards again"
        )


def check_classes(
    where: str, dataset: str, classes: Sequence[str], model: str, num_classes: int, model_classes: Sequence[str] | None
) -> None:
    """The labels of evaluated data are the numbers of the model's classes: as many, in the same order.

    Raises ConfigError where they are not; `where` is the stage's dotted path.
    """
    refuse_one_class(classes, where, [dataset])
    if num_classes != len(classes):
        raise ConfigError(
            f"{where}.data: {dataset} has {len(classes)} classes, but the head of {model} has {num_classes}; "
            "take data with the classes that it was trained on, or fine-tune it on these"
        )
    ours, theirs = set(classes), set(model_classes or [])
    for number, (its, here) in enumerate(zip(model_classes or [], classes, strict=False)):
        if its != here and (its in ours or here in theirs):
            raise ConfigError(
                f"{where}.data: class {number} of {dataset} is {here!r}, but that of {model} is {its!r}; "
                f"name the `classes` of datasets.{dataset} in the model's order, and label its samples so"
            )


def check_background(name: str, dataset: DatasetConfig, model: str, expected: tuple[int, ...]) -> None:
    """Raise ConfigError if a data set's background is not the one that a model was trained with.

    All models of an evaluation see the same pixels.
    """
    if dataset.background != expected:
        raise ConfigError(
            f"datasets.{name}.background: found {list(dataset.background)}, but {model} was trained with transparent "
            f"pixels showing {list(expected)}; set it to that to evaluate {model}"
        )


def _renamed(names: Sequence[str], data: DataConfig, name: str, where: str) -> list[str]:
    label_map, known = data.parts[name].label_map, set(names)
    for old in label_map:
        if old not in known:
            raise ConfigError(
                f"{where}.data.mixture.{name}.label_map: {old!r} is no class of {name}; {allowed(old, names[:100])}"
            )
    return [label_map.get(label, label) for label in names]


def _class_map(names: list[str], classes: list[str]) -> ClassMap:
    """The class of each name."""
    numbers = {label: number for number, label in enumerate(classes)}
    return ClassMap(tuple(names), tuple(numbers[label] for label in names), len(classes))
