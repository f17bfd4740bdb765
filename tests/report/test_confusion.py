import numpy as np

from pipeline.report.collect import Evaluation
from pipeline.report.confusion import MAX_LABELLED, class_names, draw_confusion, most_confused, row_shares


def evaluation(counts: np.ndarray | None, classes: list[str]) -> Evaluation:
    return Evaluation("test", "test", "pretrain", classes, 0.1, 0.9, 1.0, 10, counts)


def test_most_confused_pairs_come_first_and_right_answers_never() -> None:
    counts = np.array([[90, 10, 0], [3, 5, 2], [0, 0, 7]])
    pairs = most_confused(evaluation(counts, ["cat", "dog", "owl"]))
    assert [(p.true, p.predicted, p.count) for p in pairs] == [("cat", "dog", 10), ("dog", "cat", 3), ("dog", "owl", 2)]
    assert pairs[0].share == 0.1


def test_a_class_without_samples_has_no_shares() -> None:
    assert row_shares(np.array([[0, 0], [1, 3]])).tolist() == [[0, 0], [0.25, 0.75]]


def test_classes_without_a_name_are_numbered() -> None:
    assert class_names(evaluation(None, ["cat"]), 3) == ["cat", "1", "2"]


def test_many_classes_are_drawn_without_names() -> None:
    few, many = (draw_confusion(evaluation(np.eye(n, dtype=int), [])) for n in (3, MAX_LABELLED + 1))
    assert few is not None
    assert many is not None
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert len(many.axes[0].texts) == 0
    assert draw_confusion(evaluation(None, [])) is None
