from __future__ import annotations

import numpy as np

from pipeline.metrics.average_precision import DETECTION
from pipeline.report.collect import Evaluation
from pipeline.report.precision_recall import MAX_NAMED, curves, describe_precision_recall, draw_precision_recall


def evaluation(classes: int) -> Evaluation:
    """Class number n has a precision of 1 / (n + 1) up to a recall of 0.5, and of 0 from there."""
    rows = [
        {"model": "find", "class": f"c{n}", "recall": f"{recall:.2f}", "precision": str(1 / (n + 1) * (recall <= 0.5))}
        for n in range(classes)
        for recall in (0.0, 0.5, 1.0)
    ]
    return Evaluation("test", "test", "find", [], DETECTION, {"map": 0.5}, 10, 0, None, precision_recall=rows)


def test_each_class_has_a_line_and_their_mean_stands_out() -> None:
    figure = draw_precision_recall(evaluation(2))
    assert figure is not None
    *lines, mean = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["c0", "c1"]
    np.testing.assert_allclose(lines[1].get_ydata(), [0.5, 0.5, 0])
    np.testing.assert_allclose(mean.get_ydata(), [0.75, 0.75, 0])
    assert describe_precision_recall(evaluation(2)).endswith("Average precision: c0 0.67; c1 0.33.")


def test_of_many_classes_only_the_mean_is_named() -> None:
    figure = draw_precision_recall(evaluation(MAX_NAMED + 1))
    assert figure is not None
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mean"]
    assert len(figure.axes[0].lines) == MAX_NAMED + 2


def test_models_that_find_no_objects_have_none() -> None:
    assert curves(evaluation(0)) == {}
    assert draw_precision_recall(evaluation(0)) is None
