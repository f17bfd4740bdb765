import numpy as np

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.report.confusion import MAX_DRAWN, MAX_LABELLED, draw_confusion, most_confused, row_labels, row_shares
from pipeline.report.records import Evaluation


def evaluation(counts: np.ndarray | None, classes: list[str]) -> Evaluation:
    """Of a matrix [true, predicted]."""
    pairs = None
    if counts is not None:
        pairs = np.array([(*pair, count) for pair, count in np.ndenumerate(counts) if count])
    return Evaluation("test", "test", "pretrain", classes, CLASSIFICATION, {"accuracy": 0.9}, 10, 0, pairs)


def names(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_most_confused_pairs_come_first_and_right_answers_never() -> None:
    counts = np.array([[90, 10, 0], [3, 5, 2], [0, 0, 7]])
    pairs = most_confused(evaluation(counts, ["cat", "dog", "owl"]))
    assert [(p.true, p.predicted, p.count) for p in pairs] == [("cat", "dog", 10), ("dog", "cat", 3), ("dog", "owl", 2)]
    assert pairs[0].share == 0.1


def test_a_class_without_samples_has_no_shares() -> None:
    assert row_shares(np.array([[0, 0], [1, 3]])).tolist() == [[0, 0], [0.25, 0.75]]


def test_classes_without_a_name_are_numbered() -> None:
    assert row_labels(evaluation(None, ["cat"]), 3) == ["cat", "1", "2"]


def test_many_classes_are_drawn_without_names() -> None:
    few, many = (draw_confusion(evaluation(np.eye(n, dtype=int), names(n))) for n in (3, MAX_LABELLED + 1))
    assert few is not None
    assert many is not None
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == ["0", "1", "2"]
    assert len(many.axes[0].texts) == 0
    assert draw_confusion(evaluation(None, [])) is None


def test_very_many_classes_have_their_most_confused_pairs_alone() -> None:
    classes = 30_000  # whose matrix would hold 7.2 GB
    pairs = np.array([(0, 0, 9), (0, classes - 1, 1), (classes - 1, 7, 4)])
    found = Evaluation("test", "test", "pretrain", names(classes), CLASSIFICATION, {}, 14, 0, pairs)
    assert classes > MAX_DRAWN
    assert draw_confusion(found) is None
    told = [(p.true, p.predicted, p.count, p.share) for p in most_confused(found)]
    assert told == [(str(classes - 1), "7", 4, 1.0), ("0", str(classes - 1), 1, 0.1)]
