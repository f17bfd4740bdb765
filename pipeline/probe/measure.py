"""All measures of one model's features, by each configured method.

Open settings of a method are chosen on a held-out part of the training data; the test then uses all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.probe import KnnConfig, LinearConfig, MethodsConfig, RetrievalConfig
from pipeline.errors import DataError, ModelError
from pipeline.metrics.accuracy import KNN
from pipeline.metrics.bootstrap import ResampledSums
from pipeline.metrics.schema import Measure, Schema
from pipeline.probe.interval import wilson
from pipeline.probe.knn import best_k, right_by_k
from pipeline.probe.limits import check_recall, neighbours
from pipeline.probe.linear import best_l2, fit, num_right, standardiser
from pipeline.probe.retrieval import retrieve
from pipeline.probe.rows import Beat, Rows, counts_of_ranks, silent, summed
from pipeline.probe.sgd import best_rate, fit_sgd
from pipeline.probe.split import held_out

LINEAR = Measure("linear", "Linear accuracy", "higher", share=True)
MAP = Measure("map", "mAP", "higher", share=True)

Tell = Callable[[str], None]


@dataclass
class Measured:
    """One model's measures, their 95 % intervals (Wilson for shares, a bootstrap for the mAP), and chosen settings."""

    measures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    def add_share(self, name: str, right: int, total: int) -> None:
        self.measures[name], self.intervals[name] = right / total, wilson(right, total)


def schema_of_methods(methods: MethodsConfig) -> Schema:
    """What these methods measure; the first measure selects between models."""
    measures = [KNN] if methods.knn else []
    measures += [LINEAR] if methods.linear else []
    if methods.retrieval:
        measures += [*map(recall, methods.retrieval.at), MAP]
    return Schema(tuple(measures), measures[0].name)


def recall(k: int) -> Measure:
    """Fraction of queries that find their class among the first k."""
    return Measure(f"recall_at_{k}", f"Recall@{k}", "higher", share=True)


class Measurement:
    """Applies the methods to the features of one model: this rank's training and test samples.

    `tell` is called with what is being computed, `where` is the dotted path of the methods. All ranks must call every
    method named `*_collective`, and the constructor, which raises DataError if there is no good sample and ModelError
    for features that are NaN or infinite.
    """

    def __init__(self, train: Rows, test: Rows, classes: int, *, where: str, tell: Tell, beat: Beat = silent) -> None:
        self.train, self.test, self.classes = train, test, classes
        self.where, self.tell, self.beat = where, tell, beat
        self.num_train, self.num_test = (sum(counts_of_ranks(rows.labels)) for rows in (train, test))
        for what, count in (("training", self.num_train), ("test", self.num_test)):
            if not count:
                raise DataError(f"all {what} samples are bad; `minivit shards verify` shows why")
        wrong = torch.stack([(~rows.features.isfinite()).any(dim=1).sum() for rows in (train, test)])
        if found := int(summed(wrong).sum()):
            raise ModelError(
                f"the features of {found:,} of {self.num_train + self.num_test:,} images are not finite; its weights "
                "are damaged, or it needs precision: fp32"
            )
        held = held_out(train.labels)
        self.fitted, self.validation = train.where(~held), train.where(held)

    def measure_collective(self, methods: MethodsConfig) -> Measured:
        """Measure by each method. Raises ConfigError for more neighbours than there are samples."""
        measured = Measured()
        if methods.knn:
            self.knn_collective(methods.knn, measured)
        if methods.linear:
            self.linear_collective(methods.linear, measured)
        if methods.retrieval:
            self.retrieval_collective(methods.retrieval, measured)
        return measured

    def knn_collective(self, config: KnnConfig, measured: Measured) -> None:
        self.tell("nearest neighbours")
        ks = neighbours(config, self.num_train, f"{self.where}.knn")
        if len(ks) > 1:
            k = best_k(self._right_by_k(self.validation, self.fitted, ks, config))
        else:
            [k] = ks
        measured.add_share(KNN.name, self._right_by_k(self.test, self.train, [k], config)[k], self.num_test)
        measured.chosen["k"] = k

    def _right_by_k(self, queries: Rows, gallery: Rows, ks: list[int], config: KnnConfig) -> dict[int, int]:
        return right_by_k(queries, gallery, ks, self.classes, config.temperature, self.beat)

    def linear_collective(self, config: LinearConfig, measured: Measured) -> None:
        """Choose open settings on the held-out part; the final fit uses all training samples."""
        standardise = standardiser(self.train.features)
        parts = (
            Rows(standardise(rows.features), rows.labels)
            for rows in (self.fitted, self.validation, self.train, self.test)
        )
        fitted, validation, train, test = parts
        choose = self._by_sgd if config.optimizer == "sgd" else self._by_lbfgs
        weights, chosen = choose(config, fitted, validation, train)
        measured.add_share(LINEAR.name, num_right(test, weights), self.num_test)
        measured.chosen |= chosen

    def _by_lbfgs(
        self, config: LinearConfig, fitted: Rows, validation: Rows, train: Rows
    ) -> tuple[Tensor, dict[str, float]]:
        """Start each regularisation strength from the solution of the next stronger one."""
        solutions, right, weights = {}, {}, None
        for l2 in sorted(set(config.l2), reverse=True) if len(config.l2) > 1 else ():
            self.tell(f"linear probe with l2 = {l2:g}")
            weights = fit(fitted, self.classes, l2, config.max_iterations, weights, self.beat)
            solutions[l2], right[l2] = weights, num_right(validation, weights)
        l2 = best_l2(right) if right else config.l2[0]
        self.tell(f"linear probe with l2 = {l2:g} on all training data")
        weights = fit(train, self.classes, l2, config.max_iterations, solutions.get(l2), self.beat)
        return weights, {"l2": l2}

    def _by_sgd(
        self, config: LinearConfig, fitted: Rows, validation: Rows, train: Rows
    ) -> tuple[Tensor, dict[str, float]]:
        def fits(rows: Rows, rates: Sequence[float]) -> list[Tensor]:
            return fit_sgd(
                rows, self.classes, rates, epochs=config.epochs, batch_size=config.batch_size, beat=self.beat
            )

        rate, rates = config.learning_rates[0], sorted(set(config.learning_rates))
        if len(rates) > 1:
            self.tell(f"linear probe by SGD with {len(rates)} learning rates")
            found = zip(rates, fits(fitted, rates), strict=True)
            rate = best_rate({each: num_right(validation, weights) for each, weights in found})
        self.tell(f"linear probe by SGD with the learning rate {rate:g} on all training data")
        (weights,) = fits(train, [rate])
        return weights, {"learning_rate": rate}

    def retrieval_collective(self, config: RetrievalConfig, measured: Measured) -> None:
        """Retrieval among the test samples; a sample alone in its class is not a query."""
        self.tell("retrieval")
        check_recall(config, self.num_test, f"{self.where}.retrieval")
        found = retrieve(self.test, config.at, self.beat)
        measured.chosen["queries"] = found.queries
        if found.queries:
            for k, hits in found.hits.items():
                measured.add_share(recall(k).name, hits, found.queries)
            measured.measures[MAP.name] = found.mean_average_precision
            sums = ResampledSums(2)
            for query, precision in enumerate(found.precisions.tolist()):
                sums.add(query, np.array([precision, 1]))
            measured.intervals |= sums.intervals(lambda sums: {MAP.name: sums[0] / sums[1]} if sums[1] else {})
