"""Precision against recall of detectors, as the score threshold falls."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from matplotlib.figure import Figure

from pipeline.report.records import Evaluation
from pipeline.report.theme import INK, MUTED, SERIES, as_percent, color, themed

MAX_NAMED = len(SERIES)  # with more classes than colours, all are grey and only their mean is named


def curves(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Class -> [101, 2], recall and precision, in file order."""
    rows = groupby(evaluation.precision_recall, key=lambda row: row["class"])
    return {name: np.array([(float(row["recall"]), float(row["precision"])) for row in group]) for name, group in rows}


def draw_precision_recall(evaluation: Evaluation) -> Figure | None:
    """A line per class and their mean; None for models that do not detect objects."""
    found = curves(evaluation)
    if not found:
        return None
    named = len(found) <= MAX_NAMED
    with themed():
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(found.values()):
            axes.plot(*curve.T, lw=1.2, alpha=0.7, color=color(number) if named else MUTED)
        axes.plot(*np.mean(list(found.values()), axis=0).T, color=INK, lw=2.2)
        axes.set_title("Precision and recall at an overlap of 0.5")
        axes.set_xlabel("recall", fontsize=9)
        axes.set_ylabel("precision", fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        as_percent(axes.xaxis)
        as_percent(axes.yaxis)
        *lines, mean = axes.lines
        shown = dict(zip(found, lines, strict=True)) if named else {}  # named here: a label may begin with "_"
        names = [*shown, "mean of classes"]
        axes.legend([*shown.values(), mean], names, loc="lower left", fontsize=8, labelcolor=MUTED)
    return figure


def describe_precision_recall(evaluation: Evaluation) -> str:
    """The chart in words."""
    means = {name: float(curve[:, 1].mean()) for name, curve in curves(evaluation).items()}
    told = "; ".join(f"{name} {value:.2f}" for name, value in sorted(means.items(), key=lambda pair: -pair[1])[:5])
    return f"Precision against recall of {evaluation.model} on {evaluation.dataset}. Average precision: {told}."
