import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.iou import (
    SEGMENTATION,
    IoUCounts,
    class_ious,
    full_labels,
    iou_measures,
    mean_iou,
    overlaps,
    pixel_accuracy,
)

K = 4


def by_masks(predicted: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """IoU of each class, by definition."""
    kept = labels >= 0
    ious: list[float | None] = []
    for number in range(K):
        a, b = (predicted == number) & kept, labels == number
        union = (a | b).sum()
        ious.append((a & b).sum() / union if union else None)
    return ious


def maps(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, K, shape)
    labels = np.where(rng.random(shape) < 0.6, predicted, rng.integers(-1, K - 1, shape))  # the last class is rare
    return predicted, labels


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_ious_are_those_of_their_definition(seed: int, height: int, width: int) -> None:
    predicted, labels = maps(seed, (height, width))
    counts = overlaps(torch.from_numpy(predicted), torch.from_numpy(labels.astype(np.int8)), K)
    expected = by_masks(predicted, labels)
    assert class_ious(counts) == pytest.approx(expected)
    present = [iou for iou in expected if iou is not None]
    assert mean_iou(counts) == pytest.approx(np.mean(present) if present else None)
    kept = labels >= 0
    assert pixel_accuracy(counts) == pytest.approx((predicted == labels)[kept].mean() if kept.any() else None)


ONES, TWOS = np.full((5, 6), 1), np.full((5, 6), 2)
CASES = {
    "random": maps(3, (40, 50)),
    "one class alone": (ONES, ONES),
    "nothing right": (ONES, TWOS),
    "a class predicted but never labelled": (np.where(np.arange(30).reshape(5, 6) % 2, 1, 3), ONES),
    "a class labelled but never predicted": (ONES, np.where(np.arange(30).reshape(5, 6) % 2, 1, 3)),
    "one labelled pixel": (ONES, np.where(np.arange(30).reshape(5, 6) == 7, 1, -1)),
    "predictions where nothing is labelled": (TWOS, np.where(np.arange(30).reshape(5, 6) < 4, 2, -1)),
}


@pytest.mark.parametrize(("predicted", "labels"), CASES.values(), ids=CASES.keys())
def test_means_are_those_of_scikit_learn(predicted: np.ndarray, labels: np.ndarray) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    kept = labels >= 0
    counts = overlaps(torch.from_numpy(predicted), torch.from_numpy(labels), K)
    expected = metrics.jaccard_score(labels[kept], predicted[kept], average="macro", zero_division=0)
    assert mean_iou(counts) == pytest.approx(expected, abs=1e-6)
    assert pixel_accuracy(counts) == pytest.approx(metrics.accuracy_score(labels[kept], predicted[kept]), abs=1e-6)


def test_counts_of_images_and_ranks_add_up_to_those_of_all_pixels() -> None:
    pairs = [maps(seed, (9, 11 + seed)) for seed in range(6)]
    whole = overlaps(
        torch.from_numpy(np.concatenate([a.ravel() for a, _ in pairs])),
        torch.from_numpy(np.concatenate([b.ravel() for _, b in pairs])),
        K,
    )
    ranks = [IoUCounts(K) for _ in range(3)]
    for number, (predicted, labels) in enumerate(pairs):
        ranks[number % 3].add([torch.from_numpy(predicted)], batch([labels], first=number))
    for other in ranks[1:]:
        ranks[0].merge(other.state())
    assert torch.equal(ranks[0].counts, whole)


def test_samples_of_weight_0_and_blanks_count_nowhere() -> None:
    predicted, labels = maps(1, (5, 7))
    counts = IoUCounts(K)
    empty = np.zeros((0, 0), np.int64)
    counts.add([torch.from_numpy(predicted)] * 2 + [torch.zeros(0, 0)], batch([labels, labels, empty], [1, 0, 0]))
    assert torch.equal(counts.counts, overlaps(torch.from_numpy(predicted), torch.from_numpy(labels), K))


def test_labels_come_out_of_the_ragged_field_as_they_went_in() -> None:
    _, first = maps(0, (3, 5))
    _, second = maps(1, (4, 2))
    found = full_labels(batch([first, second]).targets)
    assert [one.tolist() for one in found] == [first.tolist(), second.tolist()]


def test_a_table_has_a_row_for_each_model_and_class(tmp_path: Path) -> None:
    counts = IoUCounts(3)
    counts.add([torch.tensor([[0, 0, 1]])], batch([np.array([[0, 1, 1]])]))
    counts.write(tmp_path, "a", ["wall", "bag", "shoe"])
    counts.write(tmp_path, "b", ["wall", "bag", "shoe"])
    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["a"] * 3 + ["b"] * 3
    assert rows[0] == {
        "model": "a", "class": "wall", "right": "1", "pixels": "1", "predicted": "2", "iou": "0.500000"
    }  # fmt: skip
    assert rows[2]["iou"] == ""


def test_intervals_hold_the_measures_and_are_the_same_on_any_number_of_ranks() -> None:
    alone, *ranks = (IoUCounts(K) for _ in range(4))
    for number in range(30):
        predicted, labels = maps(number, (6, 7))
        for collector in (alone, ranks[number % 3]):
            collector.add([torch.from_numpy(predicted)], batch([labels], first=number))
    for other in ranks[1:]:
        ranks[0].merge(other.state())
    found = alone.intervals()
    assert found == ranks[0].intervals()
    assert found.keys() == (measures := iou_measures(alone.counts)).keys()
    for name, (low, high) in found.items():
        assert low < measures[name] < high < low + 0.15


def test_its_schema_picks_by_mean_iou() -> None:
    assert SEGMENTATION.selects == "mean_iou"
    assert SEGMENTATION.names == ("loss", "mean_iou", "pixel_accuracy")


def batch(labels: list[np.ndarray], weights: list[float] | None = None, first: int = 0) -> SimpleNamespace:
    """The fields that an evaluation's loader gives for these labels."""
    flat = np.concatenate([one.ravel() for one in labels]).astype(np.int8)
    offsets = np.cumsum([0, *(one.size for one in labels)])
    targets = {
        "mask_full": torch.from_numpy(flat),
        "mask_full.offsets": torch.from_numpy(offsets),
        "mask_full_size": torch.tensor([one.shape for one in labels], dtype=torch.int32),
    }
    slots = torch.arange(first, first + len(labels))
    return SimpleNamespace(targets=targets, slots=slots, weights=torch.tensor(weights or [1.0] * len(labels)))
