"""Whether a data set's samples have the image and labels that a run reads, as far as its index knows."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.errors import DataError
from pipeline.shards.index import LISTING
from pipeline.shards.members import Keys
from pipeline.shards.unusable_samples import members_message, unusable, unusable_message
from pipeline.targets import target_kind
from pipeline.train.job import Dataset


def keys_of(dataset: Dataset) -> Keys:
    """The members read as images: the config's, otherwise the index's."""
    return dataset.index.keys.override(dataset.config.image_key)


def members_of(dataset: Dataset, kind: str) -> tuple[str, ...]:
    """The members read for a kind of target: the config's, otherwise the index's; empty if neither names any."""
    config = dataset.config.targets.of(kind)
    return (config and config.members) or dataset.index.members.get(kind, ())


def counted(dataset: Dataset, kind: str) -> bool:
    """Whether the index covers the labels that a run reads."""
    return named_alike(dataset, kind) and kind in dataset.index.columns


def named_alike(dataset: Dataset, kind: str) -> bool:
    """Whether a run reads the labels that the index names."""
    return dataset.index.members.get(kind) == members_of(dataset, kind) != ()


def check_usable(name: str, dataset: Dataset, kinds: Collection[str]) -> None:
    """Raise DataError if no sample is usable, or the classes of a required kind are unknown."""
    index, where = dataset.index, f"datasets.{name}: {dataset.config.shards}"
    if not index.num_samples:
        raise DataError(f"{where} has no samples; correct `shards`, or write samples there and index them")
    for kind in kinds:
        members = members_of(dataset, kind)
        if not members:
            raise DataError(
                f"{where} has no {kind} in its index; {members_message(index)}; name the member that holds it in "
                f"datasets.{name}.targets.{kind}, or run `minivit shards index '{dataset.config.shards}' --target "
                f"{kind}=MEMBER`"
            )
        if not named_alike(dataset, kind) and target_kind(kind).classed and dataset.config.classes_of(kind) is None:
            known = ", ".join(index.members.get(kind, ()))
            how = f"with the {kind} member {known!r}" if known else f"without {kind}"
            raise DataError(
                f"{where} was indexed {how}, so the classes of {members[0]!r} are not known; run "
                f"`minivit shards index '{dataset.config.shards}' --target {kind}={members[0]}`, or name the `classes`"
            )
    looked_at = [kind for kind in kinds if counted(dataset, kind)]
    if index.keys == keys_of(dataset) and unusable(index, looked_at) == index.num_samples:
        raise DataError(
            f"{where}: {unusable_message(index, looked_at)}; correct image_key and targets, or write the shards with "
            "both"
        )


def usable_warning(name: str, dataset: Dataset, kinds: Collection[str]) -> str | None:
    """A sentence if some samples are unusable, or the index does not know whether they are."""
    index, keys = dataset.index, keys_of(dataset)
    asked = {kind: members_of(dataset, kind) for kind in kinds}
    if index.hash_of == LISTING:
        return (
            f"datasets.{name}: its index only knows how many samples each shard has, so those without an image or a "
            f"label are found during the run; `minivit shards index CONFIG.yaml:{name}` counts them"
        )
    if index.keys != keys or not all(counted(dataset, kind) for kind in kinds):
        reads = [keys.image_key, *(", ".join(members) for members in asked.values())]
        looked = [index.keys.image_key, *(", ".join(index.members.get(kind, ["nothing"])) for kind in kinds)]
        return (
            f"datasets.{name}: reads {' and '.join(reads)}, but its index looked for {' and '.join(looked)}, so "
            f"samples without them are found only during the run; `minivit shards index CONFIG.yaml:{name}` counts them"
        )
    if unusable(index, kinds):
        return f"datasets.{name}: {unusable_message(index, kinds)}; training skips them"
    return None
