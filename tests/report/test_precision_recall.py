from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from pipeline.metrics.average_precision import DETECTION
from pipeline.report.precision_recall import MAX_NAMED, curves, describe_precision_recall, draw_precision_recall
from pipeline.report.records import Evaluation


def legend_of(figure: Figure | None) -> list[str]:
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def evaluation(classes: int, prefix: str = "c") -> Evaluation:
    """Class number n has a precision of 1 / (n + 1) up to a recall of 0.5, and of 0 from there."""
    rows = [
        {"model": "find", "class": f"{prefix}{n}", "recall": f"{recall:.2f}", "precision": f"{precision / (n + 1)}"}
        for n in range(classes)
        for recall, precision in ((0.0, 1), (0.5, 1), (1.0, 0))
    ]
    return Evaluation("test", "test", "find", [], DETECTION, {"map": 0.5}, 10, 0, None, precision_recall=rows)


def test_each_class_has_a_line_and_their_mean_stands_out() -> None:
    figure = draw_precision_recall(evaluation(2))
    assert figure is not None
    *lines, mean = figure.axes[0].lines
    assert legend_of(figure) == ["c0", "c1", "mean of classes"]
    np.testing.assert_allclose(lines[1].get_ydata(), [0.5, 0.5, 0])
    np.testing.assert_allclose(mean.get_ydata(), [0.75, 0.75, 0])
    assert describe_precision_recall(evaluation(2)).endswith("Average precision: c0 0.67; c1 0.33.")


def test_of_many_classes_only_the_mean_is_named() -> None:
    figure = draw_precision_recall(evaluation(MAX_NAMED + 1))
    assert figure is not None
    assert legend_of(figure) == ["mean of classes"]
    assert len(figure.axes[0].lines) == MAX_NAMED + 2


def test_every_name_is_a_name() -> None:
    assert legend_of(draw_precision_recall(evaluation(2, "_c"))) == ["_c0", "_c1", "mean of classes"]


def test_models_that_find_no_objects_have_none() -> None:
    assert curves(evaluation(0)) == {}
    assert draw_precision_recall(evaluation(0)) is None
