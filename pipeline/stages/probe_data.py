"""The data of a probe: two labelled sets with the same class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.config.fields import allowed
from pipeline.config.probe import LABELS, MethodsConfig, OnlineKnnConfig, Pooling
from pipeline.errors import ConfigError
from pipeline.models.model_spec import ModelSpec
from pipeline.probe.limits import check_recall, neighbours
from pipeline.stages.data import evaluated_classes, plain_source, refuse_too_few
from pipeline.stream.source import Source
from pipeline.train.job import Dataset, KnnJob

KINDS = (LABELS,)


class ProbeSources(NamedTuple):
    """The two data sets with their labels, which number the classes of the training data."""

    train: Source
    test: Source
    classes: list[str]


def probe_sources(names: tuple[str, str], datasets: tuple[Dataset, Dataset], where: str) -> ProbeSources:
    """The training and test data of a probe; `where` is the dotted path of its `data` section.

    Raises DataError for data without labels, ConfigError for a single class and for test data of other classes.
    """
    train, test = datasets
    classes = evaluated_classes(names[0], train, KINDS)
    tested = evaluated_classes(names[1], test, KINDS)
    check_probed_classes(names, classes, tested, where)
    return ProbeSources(
        plain_source(names[0], train, classes, KINDS), plain_source(names[1], test, classes, KINDS), classes
    )


def check_probed_classes(names: tuple[str, str], classes: Sequence[str], tested: Sequence[str], where: str) -> None:
    """Raise ConfigError for a single class, and for a class found only in the test data."""
    refuse_too_few(classes, where.removesuffix(".data"), names[:1])
    unknown = next((name for name in tested if name not in set(classes)), None)
    if unknown is not None:
        raise ConfigError(
            f"{where}.test: class {unknown!r} of {names[1]} is not among the {len(classes)} classes of {names[0]}; "
            f"{allowed(unknown, classes[:100])}; use data of the same classes, or list the same `classes` for both"
        )


def check_features(where: str, features: Pooling, name: str, spec: ModelSpec) -> None:
    """Raise ConfigError for features that a model lacks."""
    if features == "cls" and not spec.backbone.tokens.cls:
        raise ConfigError(f"{where}.features: found cls, but {name} has no class token; use patches or both")


def check_numbers(methods: MethodsConfig, train: int, test: int, where: str) -> None:
    """Raise ConfigError if there are fewer training or test samples than a k; `where` is the methods' path."""
    if methods.knn:
        neighbours(methods.knn, train, f"{where}.knn")
    if methods.retrieval:
        check_recall(methods.retrieval, test, f"{where}.retrieval")


def knn_job(datasets: Mapping[str, Dataset], config: OnlineKnnConfig | None, where: str) -> KnnJob | None:
    """What ranks need to measure features while they train; errors as in `probe_sources`."""
    if config is None:
        return None
    names = config.train, config.test
    train, test, classes = probe_sources(names, (datasets[names[0]], datasets[names[1]]), where)
    return KnnJob(train, test, len(classes), config)
