from __future__ import annotations

import contextlib
import csv
import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.average_precision import DETECTION, AveragePrecision, PredictedBoxes

K = 3
STATS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
Image = tuple[list[Any], list[Any]]  # labelled (box, label, area, crowd), predicted (box, label, score)


def image(rng: np.random.Generator, labelled: int, predicted: int, *, ties: bool = False, side: int = 300) -> Image:
    """Objects and predictions near them or anywhere, of any class, a few of them crowds."""
    boxes = []
    for _ in range(labelled):
        corner, size = rng.uniform(0, side / 2, 2), np.exp(rng.uniform(1.5, np.log(side / 2), 2))
        box = [*corner, *(corner + size)]
        boxes.append((box, int(rng.integers(K)), float(size.prod() * rng.uniform(0.4, 1)), bool(rng.random() < 0.15)))
    found = []
    for number in range(predicted):
        near = bool(labelled) and rng.random() < 0.7
        box, label, *_ = boxes[number % labelled] if near else image(rng, 1, 0)[0][0]
        moved = (np.array(box) + rng.normal(0, 4, 4)).astype(np.float32).astype(float)
        moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
        score = np.round(rng.random(), 1) if ties else rng.random()
        found.append((moved.tolist(), label, float(np.float32(score))))
    return boxes, found


def batch_of(
    slots: list[int], images: list[Image], weights: list[float] | None = None
) -> tuple[list[PredictedBoxes], Any]:
    labelled = [one for boxes, _ in images for one in boxes]
    columns = list(zip(*labelled, strict=True)) if labelled else [[], [], [], []]
    targets = {
        "boxes_full": torch.tensor(columns[0], dtype=torch.float64).view(-1, 4),
        "box_label": torch.tensor(columns[1], dtype=torch.int64),
        "box_area": torch.tensor(columns[2], dtype=torch.float64),
        "box_crowd": torch.tensor(columns[3], dtype=torch.bool),
        "boxes_full.offsets": torch.tensor(np.cumsum([0, *(len(boxes) for boxes, _ in images)])),
    }
    predicted = [
        PredictedBoxes(
            torch.tensor([box for box, _, _ in found], dtype=torch.float32).view(-1, 4),
            torch.tensor([score for _, _, score in found], dtype=torch.float32),
            torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        )
        for _, found in images
    ]
    weighed = torch.tensor(weights or [1.0] * len(slots))
    return predicted, SimpleNamespace(slots=torch.tensor(slots), weights=weighed, targets=targets)


def directly(images: list[Image]) -> dict[str, float]:
    """The result of pycocotools, used as in its own example."""
    annotations, results = [], []
    for slot, (boxes, found) in enumerate(images):
        for (x, y, right, bottom), label, area, crowd in boxes:
            one = {"id": len(annotations) + 1, "image_id": slot, "category_id": label, "iscrowd": int(crowd)}
            annotations.append(one | {"bbox": [x, y, right - x, bottom - y], "area": area})
        for (x, y, right, bottom), label, score in found:
            one = {"image_id": slot, "category_id": label, "bbox": [x, y, right - x, bottom - y], "score": score}
            results.append(one)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": slot} for slot in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(K)],
        }
        truth.createIndex()
        guesses = truth.loadRes(results) if results else COCO()
        judge = COCOeval(truth, guesses, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: value for name, value in zip(STATS, judge.stats.tolist(), strict=False) if value > -1}


def collected(images: list[Image], ranks: int, *, by_size: bool = True) -> AveragePrecision:
    """Divided among ranks in contiguous ranges, as in an evaluation; states are exchanged as bytes."""
    collectors = [AveragePrecision(K, by_size=by_size) for _ in range(ranks)]
    for rank, slots in enumerate(np.array_split(np.arange(len(images)), ranks)):
        for some in np.array_split(slots, 2):
            padding: Image = image(np.random.default_rng(9), 3, 3)
            filled = [*(images[slot] for slot in some), padding]
            collectors[rank].add(*batch_of([*some.tolist(), -1], filled, [1.0] * len(some) + [0.0]))
    first = collectors[-1]  # whichever comes first
    for other in collectors[:-1]:
        first.merge(pickle.loads(pickle.dumps(other.state())))
    return first


def many(seed: int, *, ties: bool = False) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [image(rng, int(rng.integers(0, 6)), int(rng.integers(0, 9)), ties=ties) for _ in range(20)]


RNG = np.random.default_rng(0)
CASES: dict[str, list[Image]] = {
    "random": many(1),
    "ties": many(2, ties=True),
    "more than a hundred predictions": [image(RNG, 4, 150, ties=True), image(RNG, 2, 5)],
    "nothing predicted": [image(RNG, 3, 0), image(RNG, 2, 0)],
    "nothing labelled in some": [image(RNG, 0, 5), image(RNG, 3, 6), ([], [])],
    "crowds alone": [([([0, 0, 90, 90], 1, 8100.0, True)], [([5, 5, 80, 80], 1, 0.9)]), image(RNG, 2, 4)],
    "one class alone": [([([0, 0, 50, 50], 2, 2500.0, False)], [([0, 0, 50, 50], 2, 0.9)])],
    "the same box many times": [([([0, 0, 50, 50], 0, 2500.0, False)], [([0, 0, 50, 50], 0, 0.5)] * 7)],
    "on the borders between sizes": [
        ([([0, 0, side, side], 0, float(side**2), False)], [([0, 0, side, side], 0, 0.7)]) for side in (32, 96, 95, 31)
    ],
}


@pytest.mark.parametrize("images", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("ranks", [1, 3])
def test_it_is_what_pycocotools_says(images: list[Image], ranks: int) -> None:
    expected = directly(images)
    found = collected(images, ranks).measures()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6)
    cheap = collected(images, ranks, by_size=False).measures()
    assert cheap == pytest.approx({name: value for name, value in expected.items() if name in STATS[:3]}, abs=1e-6)


def test_of_no_objects_there_is_no_precision() -> None:
    assert collected([image(np.random.default_rng(0), 0, 3)], 1).measures() == {}
    assert set(STATS) <= set(DETECTION.names)


def test_intervals_are_the_same_on_any_number_of_ranks_and_hold_the_measures() -> None:
    rng = np.random.default_rng(4)
    images = [image(rng, int(rng.integers(0, 6)), int(rng.integers(0, 9)), ties=True) for _ in range(60)]
    alone, found = collected(images, 1), collected(images, 3).intervals()
    measures = alone.measures()
    assert found == alone.intervals()
    assert found.keys() == measures.keys() - {"map_large"}  # too few images have such objects
    assert all(low < measures[name] < high for name, (low, high) in found.items())
    assert collected(images[:19], 1).intervals() == {}  # too few


def test_each_class_has_a_row(tmp_path: Path) -> None:
    images = [([([0, 0, 50, 50], 2, 2500.0, False), ([0, 0, 9, 9], 2, 81.0, True)], [([0, 0, 50, 50], 2, 0.9)])]
    collected(images, 1).write(tmp_path, "model", ["a", "b", "c"])
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    assert [(row["class"], row["objects"], row["ap"], row["ap_50"]) for row in rows] == [
        ("a", "0", "", ""),
        ("b", "0", "", ""),
        ("c", "1", "1.000000", "1.000000"),
    ]


def test_precision_falls_with_recall_as_pycocotools_has_it(tmp_path: Path) -> None:
    images = next(iter(CASES.values()))
    collected(images, 1).write(tmp_path, "model", ["a", "b", "c"])
    rows = list(csv.DictReader((tmp_path / "precision_recall.csv").open()))
    assert {row["model"] for row in rows} == {"model"}
    judged = [row for row in csv.DictReader((tmp_path / "per_class.csv").open()) if row["ap_50"]]
    for row in judged:
        curve = [one for one in rows if one["class"] == row["class"]]
        assert [one["recall"] for one in curve] == [f"{recall / 100:.2f}" for recall in range(101)]
        precision = [float(one["precision"]) for one in curve]
        assert precision == sorted(precision, reverse=True)
        assert np.mean(precision) == pytest.approx(float(row["ap_50"]), abs=1e-5)
    assert {one["class"] for one in rows} == {row["class"] for row in judged}
