"""How frozen features are measured: the settings of each method, for `probe` stages and the online kNN."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Positive, Section

RANDOM, PIXELS = BASELINES = ("random", "pixels")  # listed among a probe's models, but not models
LABELS = "class_id"  # the kind of target used to measure features
Pooling = Literal["cls", "patches", "both"]
Above = Annotated[float, Field(gt=0)]


class KnnConfig(Section):
    """Nearest neighbours by cosine, whose votes weigh exp(cosine / temperature)."""

    k: Positive | list[Positive] | None = Field(
        default=None,
        description="number of neighbours, or several to choose from on a tenth of the training data; default: 5, "
        "10, 20, 50, 100 and 200, if there are enough samples",
    )
    temperature: Above = 0.07

    @model_validator(mode="after")
    def has_k(self) -> Self:
        if self.k == []:
            raise ValueError("k: found an empty list; give at least one number of neighbours, or leave it out")
        return self

    @property
    def asked(self) -> list[int]:
        """The configured numbers of neighbours; empty if the data decide."""
        return [] if self.k is None else [self.k] if isinstance(self.k, int) else list(self.k)


BY_LBFGS, BY_SGD = ("l2", "max_iterations"), ("learning_rates", "epochs", "batch_size")


class LinearConfig(Section):
    """Logistic regression on standardised features: to convergence, or by SGD as papers report it."""

    optimizer: Literal["lbfgs", "sgd"] = Field(
        default="lbfgs", description="sgd: momentum 0.9 and a cosine schedule, without weight decay"
    )
    l2: list[Above] = Field(
        default=[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
        min_length=1,
        description="lbfgs: strengths of l2 / 2 * |W|^2 added to the mean cross-entropy, to choose from on a tenth "
        "of the training data",
    )
    max_iterations: Positive = Field(default=200, description="lbfgs: limit per strength")
    learning_rates: list[Above] = Field(
        default=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
        min_length=1,
        description="sgd: rates for a batch of 256, scaled to batch_size; to choose from on a tenth of the training "
        "data",
    )
    epochs: Positive = Field(default=100, description="sgd: passes over the training data")
    batch_size: Positive = Field(default=1024, description="sgd: samples per step over all ranks")

    @model_validator(mode="after")
    def of_one_optimizer(self) -> Self:
        other = BY_LBFGS if self.optimizer == "sgd" else BY_SGD
        if given := [name for name in other if name in self.model_fields_set and getattr(self, name) != default(name)]:
            raise ValueError(
                f"{given[0]}: not a setting of optimizer: {self.optimizer}; leave it out, or use "
                f"{'lbfgs' if self.optimizer == 'sgd' else 'sgd'}"
            )
        return self


def default(name: str) -> object:
    """The default of a linear probe's setting, needed because a dumped config contains all of them."""
    return LinearConfig.model_fields[name].default


class RetrievalConfig(Section):
    """Each test sample is a query for the others of its class."""

    at: list[Positive] = Field(default=[1, 5, 10], min_length=1, description="values of k for recall@k")


class MethodsConfig(Section):
    knn: KnnConfig | None = None
    linear: LinearConfig | None = None
    retrieval: RetrievalConfig | None = None

    @model_validator(mode="after")
    def measures_something(self) -> Self:
        if self.knn is None and self.linear is None and self.retrieval is None:
            raise ValueError("at least one of knn, linear and retrieval, with its settings or {}")
        return self

    @property
    def fit(self) -> bool:
        """Whether a method learns from the training data; retrieval does not."""
        return self.knn is not None or self.linear is not None


class ProbeData(Section):
    train: str = Field(
        description="name of an entry of `datasets`: the neighbours, and the data to fit the probe on; for retrieval "
        "alone, name `test` again"
    )
    test: str = Field(description="name of an entry of `datasets`: the samples to classify, and to retrieve from")


class OnlineKnnConfig(ProbeData):
    """kNN accuracy of the features while a model trains, the metric val/knn."""

    k: Positive = 20
    temperature: Above = 0.07
    features: Pooling = Field(
        default="both", description="the class token, the mean of the patches, or both side by side"
    )
