"""The data of a stage: its sources, and the classes that several data sets share by their names."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.data import AugmentConfig, DataConfig
from pipeline.config.fields import allowed
from pipeline.errors import ConfigError
from pipeline.stages.context import class_names
from pipeline.stream.source import Source
from pipeline.train.job import Dataset


def stage_data(
    datasets: Mapping[str, Dataset], data: DataConfig, where: str
) -> tuple[list[Source], Source | None, list[str]]:
    """Training sources, validation source and class names of a stage, whose dotted path is `where`.

    Classes of equal names are one class, after `label_map` has renamed them; they are numbered as they first appear.
    Raises ConfigError for a class that a label map or the validation set names and nobody knows.
    """
    names = {name: class_names(name, datasets[name]) for name in {*data.parts, *([data.val] if data.val else [])}}
    renamed = {name: _renamed(names[name], data, name, where) for name in data.parts}
    classes = list(dict.fromkeys(label for name in data.parts for label in renamed[name]))
    train = [
        Source(
            name,
            datasets[name].index,
            datasets[name].config,
            part.augment or data.augment,
            weight,
            _numbers(renamed[name], classes),
        )
        for (name, part), weight in zip(data.parts.items(), data.weights, strict=True)
    ]
    if data.val is None:
        return train, None, classes
    both = {old: new for part in data.parts.values() for old, new in part.label_map.items()}
    val_names = [name if name in classes else both.get(name, name) for name in names[data.val]]
    unknown = [name for name in val_names if name not in classes]
    if unknown:
        raise ConfigError(
            f"{where}.data.val: its class {unknown[0]!r} is none of the {len(classes)} classes of the training data; "
            f"{allowed(unknown[0], classes[:100])}; correct `classes` of datasets.{data.val}"
        )
    val = Source(
        data.val, datasets[data.val].index, datasets[data.val].config, data.augment, 1, _numbers(val_names, classes)
    )
    return train, val, classes


def plain_source(name: str, dataset: Dataset) -> Source:
    """A data set whose labels are the model's."""
    return Source(name, dataset.index, dataset.config, AugmentConfig())


def _renamed(names: list[str], data: DataConfig, name: str, where: str) -> list[str]:
    label_map = data.parts[name].label_map
    for old in label_map:
        if old not in names:
            raise ConfigError(
                f"{where}.data.mixture.{name}.label_map: {old!r} is no class of {name}; {allowed(old, names[:100])}"
            )
    return [label_map.get(label, label) for label in names]


def _numbers(names: list[str], classes: list[str]) -> tuple[int, ...] | None:
    """The class of each name; None where names are the classes."""
    if names == classes:
        return None
    numbers = {label: number for number, label in enumerate(classes)}
    return tuple(numbers[label] for label in names)
