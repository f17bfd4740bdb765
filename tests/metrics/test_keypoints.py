from __future__ import annotations

import contextlib
import csv
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.keypoints import (
    COCO_SIGMAS,
    ImageInstances,
    KeypointResults,
    counted,
    default_sigmas,
    judged,
    oks_ap,
    right_keypoints,
)
from pipeline.probe.interval import wilson


def images(count: int, keypoints: int, noise: float, seed: int = 0) -> dict[int, ImageInstances]:
    """Images of 0 to 3 instances whose keypoints are predicted with an error of this share of the box."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        n = number % 4
        corners = rng.uniform(0, 100, (n, 2))
        sides = rng.uniform(20, 90, (n, 2))
        points = corners[:, None] + sides[:, None] * rng.random((n, keypoints, 2))
        flags = rng.choice([0, 1, 2], (n, keypoints, 1), p=[0.2, 0.2, 0.6])
        flags[:, 0] = 2
        guesses = points + noise * sides.max(axis=-1, initial=0)[:, None, None] * rng.standard_normal(points.shape)
        scores = rng.random((n, keypoints, 1))
        found[number] = ImageInstances(
            np.concatenate([points, flags], axis=2),
            np.concatenate([corners, corners + sides], axis=1),
            sides.prod(axis=1) * 0.6,
            np.concatenate([guesses, scores], axis=2),
        )
    return found


def by_coco(found: dict[int, ImageInstances], keypoints: int) -> float:
    """The result of pycocotools for files in COCO's format."""
    truths: list[dict[str, Any]] = []
    guesses: list[dict[str, Any]] = []
    for number, one in found.items():
        for row in range(len(one.truth)):
            x0, y0, x1, y1 = one.boxes[row]
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "keypoints": one.truth[row].ravel().tolist(),
                    "num_keypoints": int((one.truth[row, :, 2] > 0).sum()),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": one.areas[row],
                }
            )
            points = one.predicted[row].copy()
            score = points[:, 2].mean()
            guesses.append({"image_id": number, "category_id": 1, "keypoints": points.ravel().tolist(), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": n} for n in found],
            "categories": [{"id": 1}],
            "annotations": truths,
            "info": {},
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(guesses), "keypoints")
        judge.params.kpt_oks_sigmas = np.array(default_sigmas(keypoints))
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


@pytest.mark.parametrize(("keypoints", "noise"), [(5, 0.1), (5, 0.2), (17, 0.03), (3, 0.0)])
def test_average_precision_is_that_of_pycocotools(keypoints: int, noise: float) -> None:
    found = images(24, keypoints, noise)
    expected = by_coco(found, keypoints)
    assert oks_ap(judged(found, default_sigmas(keypoints))) == pytest.approx(expected, abs=1e-9)
    assert (expected == 1.0) == (noise == 0.0)


CASES = {
    "tied scores": {n: one._replace(predicted=one.predicted.round(0)) for n, one in images(24, 5, 0.1, 1).items()},
    "every score the same": {
        n: one._replace(predicted=np.concatenate([one.predicted[..., :2], np.ones_like(one.truth[..., :1])], axis=2))
        for n, one in images(24, 5, 0.1, 2).items()
    },
    "instances in the same place": {
        n: ImageInstances(*(part.repeat(3, axis=0) for part in one)) for n, one in images(6, 5, 0.15, 3).items()
    },
    "one instance in many images": {n: one for n, one in images(40, 5, 0.1, 4).items() if n == 1 or n % 4 == 0},
    "objects of a few pixels": {
        n: ImageInstances(one.truth * (0.05, 0.05, 1), one.boxes * 0.05, one.areas * 0.0025, one.predicted * 0.05)
        for n, one in images(24, 5, 0.1, 5).items()
    },
}


@pytest.mark.parametrize("found", CASES.values(), ids=CASES.keys())
def test_unusual_images_are_judged_as_pycocotools_does(found: dict[int, ImageInstances]) -> None:
    assert oks_ap(judged(found, default_sigmas(5))) == pytest.approx(by_coco(found, 5), abs=1e-6)


@given(st.integers(0, 1000), st.integers(0, 4))
def test_pck_is_that_of_its_definition(seed: int, count: int) -> None:
    """No library has PCK relative to the box."""
    rng = np.random.default_rng(seed)
    truth, guess = rng.uniform(0, 50, (2, count, 6, 3))
    truth[..., 2] = rng.integers(0, 3, (count, 6))
    corners = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (count, 2))], axis=1)
    expected = [
        [
            v > 0 and math.dist((x, y), near[:2]) <= 0.1 * max(x1 - x0, y1 - y0)
            for (x, y, v), near in zip(*pair, strict=True)
        ]
        for *pair, (x0, y0, x1, y1) in zip(truth, guess, boxes, strict=True)
    ]
    found = right_keypoints(*(torch.from_numpy(part) for part in (guess, truth, boxes)))
    assert found.tolist() == expected


def test_ranks_together_have_what_one_has(tmp_path: Path) -> None:
    found = images(12, 5, 0.06)
    alone, *ranks = (KeypointResults(default_sigmas(5)) for _ in range(4))
    rows = list(found.items())
    for collector, part in [(alone, rows), *zip(ranks, (rows[7:], rows[:3], rows[3:7]), strict=True)]:
        slots, weights = torch.tensor([slot for slot, _ in part] + [-1, 5]), torch.tensor([1.0] * len(part) + [0, 0])
        collector.add([one for _, one in part] + [rows[1][1]] * 2, SimpleNamespace(slots=slots, weights=weights))
    for other in ranks[1:]:
        ranks[0].merge(other.state())
    measured = alone.measures()
    assert ranks[0].measures() == measured
    assert measured.keys() == {"pck_visible", "oks_ap"}
    assert measured["oks_ap"] == pytest.approx(by_coco(found, 5))
    visible = {slot: one._replace(truth=one.truth * (one.truth[..., 2:] == 2)) for slot, one in found.items()}
    right, labelled, *_ = sum(map(counted, visible.values())).sum(axis=1).tolist()
    assert measured["pck_visible"] == right / labelled
    alone.write(tmp_path, "m", list("abcde"))
    with (tmp_path / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    for column, least in (("labelled", 1), ("visible", 2)):
        flagged = sum((one.truth[..., 2] >= least).sum(axis=0) for one in found.values())
        assert [int(row[column]) for row in table] == flagged.tolist()
    assert sum(int(row["right_visible"]) for row in table) == right
    assert [row["class"] for row in table] == list("abcde")


def test_intervals_of_pck_and_precision() -> None:
    collector = KeypointResults(default_sigmas(5))
    collector.merge(images(60, 5, 0.08))
    found, oks = collector.intervals(), collector.measures()["oks_ap"]
    right, labelled, seen, visible = sum(map(counted, collector.images.values())).sum(axis=1).tolist()
    assert found["oks_ap"][0] < oks < found["oks_ap"][1]
    assert found["pck"] == pytest.approx(wilson(right, labelled), abs=0.02)  # these errors are independent
    assert found["pck_visible"] == pytest.approx(wilson(seen, visible), abs=0.02)
    exact = KeypointResults(default_sigmas(5))
    exact.merge(images(60, 5, 0.0))
    assert exact.intervals() == {}


def test_nothing_labelled_is_no_precision() -> None:
    assert oks_ap(judged(images(1, 5, 0.0), default_sigmas(5))) is None
    collector = KeypointResults(default_sigmas(5))
    collector.merge(images(1, 5, 0.0))
    assert collector.measures() == {}


def test_a_keypoint_is_right_within_a_tenth_of_the_larger_side() -> None:
    truth = torch.tensor([[[10.0, 10, 2], [10, 10, 1], [10, 10, 0], [10, 10, 2]]])
    guess = torch.tensor([[[14.0, 10, 1], [10, 13.9, 1], [10, 10, 1], [13, 13, 1]]])
    assert right_keypoints(guess, truth, torch.tensor([[0.0, 0, 20, 40]])).tolist() == [[True, True, False, False]]


def test_sigmas() -> None:
    assert default_sigmas(17) == COCO_SIGMAS
    assert default_sigmas(4) == (0.25,) * 4
