"""Which classes a model confuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from pipeline.report.records import Evaluation
from pipeline.report.theme import INK, MUTED, SHADES, themed

MAX_DRAWN = 200  # above this, only the most confused pairs are shown
MAX_LABELLED = 40  # above this, names and numbers would be unreadable
MAX_NUMBERED = 16


@dataclass(frozen=True)
class Confusion:
    """`count` samples of class `true`, a fraction `share` of them, were predicted as `predicted`."""

    true: str
    predicted: str
    count: int
    share: float


def row_labels(evaluation: Evaluation, num_classes: int) -> list[str]:
    """A name for each row; the number replaces a missing name."""
    named = evaluation.classes[:num_classes]
    return named + [str(i) for i in range(len(named), num_classes)]


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Counts [true, predicted] as fractions of each true class; a class without samples is all zero."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)


def most_confused(evaluation: Evaluation, limit: int = 5) -> list[Confusion]:
    """The most frequent mistakes, most frequent first."""
    if evaluation.confusion is None:
        return []
    true, predicted, counts = evaluation.confusion.T
    samples = np.bincount(true, weights=counts)  # per class
    mistakes = np.flatnonzero(true != predicted)
    chosen = mistakes[np.argsort(-counts[mistakes], kind="stable")][:limit]
    names = row_labels(evaluation, 1 + int(evaluation.confusion[:, :2].max(initial=0)))
    return [
        Confusion(names[true[i]], names[predicted[i]], int(counts[i]), float(counts[i] / samples[true[i]]))
        for i in chosen
    ]


def dense(evaluation: Evaluation) -> np.ndarray | None:
    """Counts [true, predicted]; None if the evaluation has none, or too many classes to show."""
    if evaluation.confusion is None or not 0 < len(evaluation.classes) <= MAX_DRAWN:
        return None
    counts = np.zeros((len(evaluation.classes),) * 2, np.int64)
    counts[evaluation.confusion[:, 0], evaluation.confusion[:, 1]] = evaluation.confusion[:, 2]
    return counts


def draw_confusion(evaluation: Evaluation) -> Figure | None:
    """Heat map of the confusion matrix, rows normalised; None if there is no matrix to draw."""
    counts = dense(evaluation)
    if counts is None:
        return None
    classes = len(counts)
    shares = row_shares(counts)
    side = float(np.clip(0.42 * classes, 3.6, 7.0))
    with themed():
        figure = Figure(figsize=(side + 1.1, side + 1.0), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1, interpolation="none")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted", color=MUTED, fontsize=9)
        axes.set_ylabel("true", color=MUTED, fontsize=9)
        if classes <= MAX_LABELLED:
            names = row_labels(evaluation, classes)
            size = 9 if classes <= MAX_NUMBERED else 6
            axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
            axes.set_yticks(range(classes), names, fontsize=size)
        if classes <= MAX_NUMBERED:
            for (i, j), share in np.ndenumerate(shares):
                if counts[i, j]:
                    told = f"{100 * share:.0f}" if share > 0.005 else "·"
                    axes.text(j, i, told, ha="center", va="center", fontsize=8.5, color=number_color(float(share)))
    return figure


def number_color(share: float) -> str:
    """A text colour that is readable on its cell in light and dark mode."""
    if share > 0.35:
        return "#ffffff"
    return INK if share >= 0.02 else MUTED


def describe_confusion(evaluation: Evaluation) -> str:
    """The heat map in words."""
    pairs = "; ".join(f"{c.true} predicted as {c.predicted} in {c.share:.0%}" for c in most_confused(evaluation, 3))
    return f"Confusion matrix of {evaluation.model} on {evaluation.dataset}. Most frequent mistakes: {pairs or 'none'}."
