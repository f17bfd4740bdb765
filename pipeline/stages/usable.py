"""Whether the samples of a data set have the image and the label that a run reads, as far as its index knows."""

from __future__ import annotations

from pipeline.errors import DataError
from pipeline.shards.lacks import lacking
from pipeline.shards.members import Keys
from pipeline.train.job import Dataset


def keys_of(dataset: Dataset) -> Keys:
    """The members that a run reads: the config's, else the index's."""
    return dataset.index.keys.override(dataset.config.image_key, dataset.config.label_key)


def labels_counted(dataset: Dataset) -> bool:
    """Whether the index has read the labels that a run reads."""
    return keys_of(dataset).label == dataset.index.keys.label


def check_usable(name: str, dataset: Dataset) -> None:
    """Raise DataError if a run could use no sample, or its classes are unknown."""
    index, asked, where = dataset.index, keys_of(dataset), f"datasets.{name}: {dataset.config.shards}"
    if not index.num_samples:
        raise DataError(f"{where} holds no samples; correct `shards`, or write samples there and index them")
    if not labels_counted(dataset):
        if dataset.config.classes is None:
            raise DataError(
                f"{where} was indexed with the label key {index.keys.label!r}, so the classes of {asked.label!r} are "
                f"not known; run `minivit shards index '{dataset.config.shards}' --label-key {asked.label}`, or name "
                "the `classes`"
            )
    elif index.keys == asked and index.total_lacks.unusable == index.num_samples:
        raise DataError(f"{where}: {lacking(index)}; correct image_key and label_key, or write the shards with both")


def usable_warning(name: str, dataset: Dataset) -> str | None:
    """A sentence where some samples cannot be used, or the index does not know whether they can."""
    index, keys = dataset.index, keys_of(dataset)
    if index.keys != keys:
        return (
            f"datasets.{name}: reads {keys.image_key} and {keys.label}, but its index looked for "
            f"{index.keys.image_key} and {index.keys.label}, so samples without them are found only during the run; "
            f"`minivit shards index CONFIG.yaml:{name}` counts them"
        )
    if index.lacks:
        return f"datasets.{name}: {lacking(index)}; training skips them"
    return None
