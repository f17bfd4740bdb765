from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.metrics.keypoints import (
    COCO_SIGMAS,
    ImageInstances,
    KeypointResults,
    default_sigmas,
    oks_ap,
    right_keypoints,
)


def images(count: int, keypoints: int, noise: float, seed: int = 0) -> dict[int, ImageInstances]:
    """Images of 0 to 3 instances whose keypoints are found with an error of this share of the box."""
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
    """As a user of pycocotools would have it, from COCO's own files."""
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
    assert oks_ap(found, default_sigmas(keypoints)) == pytest.approx(expected, abs=1e-9)
    assert (expected == 1.0) == (noise == 0.0)


def test_ranks_together_have_what_one_has(tmp_path: Path) -> None:
    found = images(12, 5, 0.06)
    alone, *ranks = (KeypointResults(default_sigmas(5)) for _ in range(4))
    rows = list(found.items())
    for collector, part in [(alone, rows), *zip(ranks, (rows[7:], rows[:3], rows[3:7]), strict=True)]:
        slots, weights = torch.tensor([slot for slot, _ in part] + [-1, 5]), torch.tensor([1.0] * len(part) + [0, 0])
        collector.add([one for _, one in part] + [rows[1][1]] * 2, SimpleNamespace(slots=slots, weights=weights))
    for other in ranks[1:]:
        ranks[0].merge(other.state())
    assert ranks[0].measures() == alone.measures() == {"oks_ap": pytest.approx(by_coco(found, 5))}
    alone.write(tmp_path, "m", list("abcde"))
    with (tmp_path / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    labelled = sum((one.truth[..., 2] > 0).sum(axis=0) for one in found.values())
    assert [int(row["labelled"]) for row in table] == labelled.tolist()
    assert [row["class"] for row in table] == list("abcde")


def test_nothing_labelled_is_no_precision() -> None:
    assert oks_ap(images(1, 5, 0.0), default_sigmas(5)) == 0.0


def test_a_keypoint_is_right_within_a_tenth_of_the_larger_side() -> None:
    truth = torch.tensor([[[10.0, 10, 2], [10, 10, 1], [10, 10, 0], [10, 10, 2]]])
    guess = torch.tensor([[[14.0, 10, 1], [10, 13.9, 1], [10, 10, 1], [13, 13, 1]]])
    assert right_keypoints(guess, truth, torch.tensor([[0.0, 0, 20, 40]])).tolist() == [[True, True, False, False]]


def test_sigmas() -> None:
    assert default_sigmas(17) == COCO_SIGMAS
    assert default_sigmas(4) == (0.25,) * 4
