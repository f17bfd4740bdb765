"""Dense labels through `minivit run`: training, fine-tuning with another head, evaluation at the labels' own size."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import load_model
from pipeline.shards.build import build_index
from pipeline.shards.write import ShardWriter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CLASSES = ["wall", "bag", "shoe", "boot", "unknown"]
GROUPS = {"wall": ["wall"], "bags": ["bag"], "footwear": ["shoe", "boot"]}  # what is unknown is ignored
COLOURS = np.array([(60, 60, 60), (220, 40, 40), (40, 200, 60), (60, 220, 40), (200, 200, 40)], np.uint8)
COUNTS = {"train": 48, "val": 10, "test": 13}
BAD = 3  # number of the scene of each split whose mask has another size


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a noisy rectangle for each of two classes, and its class map; sizes vary."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(40, 65, 2)
    classes = np.zeros((height, width), np.uint8)
    for label in rng.permutation(4)[:2] + 1:
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
        classes[top : top + 24, left : left + 24] = label
    noise = rng.integers(-15, 16, (height, width, 3))
    return (COLOURS[classes] + noise).clip(0, 255).astype(np.uint8), classes


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "scenes"
    folder.mkdir()
    for place, (split, count) in enumerate(COUNTS.items()):
        with ShardWriter(folder, split, 24) as writer:
            for number in range(count):
                picture, classes = scene(1000 * place + number)
                mask = classes[1:] if number == BAD else classes
                writer.write(f"{split}-{number:04d}", {"png": png(picture), "seg.png": png(mask)})
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    build_index(str(folder))
    return folder


@pytest.fixture(scope="module")
def raw(kit: Any, scenes: Path) -> dict[str, Any]:
    stage = kit.pretrain(
        model={"variant": "nano", "depth": 2, "image_size": 32, "patch_size": 4},
        task={"type": "segmentation", "head_options": {"cells": 2}},
        duration="60 steps",
        checkpoint={"every": "30 steps", "keep_best": "val/mean_iou"},
        eval={"every": "20 steps"},
    )
    stage["data"]["augment"] = {"crop": "random_resized", "scale": [0.5, 1.0]}
    larger = stage | {
        "type": "finetune",
        "init_from": "pretrain",
        "model": {"image_size": 48, "patch_size": 4},
        "task": {"type": "segmentation", "head": "mask_transformer", "layers": [0, 1], "head_options": {"depth": 1}},
        "duration": "20 steps",
    }
    stages = {
        "pretrain": stage,
        "larger": larger,
        "evaluate": {"type": "evaluate", "models": ["pretrain", "larger"], "data": "test", "batch_size": 4},
        "export": {"type": "export", "model": "pretrain"},
        "report": {"type": "report"},
    }
    config = kit.config(scenes, "dense", stages)
    for dataset in config["datasets"].values():
        dataset |= {
            "mean": [0.4] * 3,
            "std": [0.3] * 3,
            "classes": CLASSES,
            "targets": {"mask": {"member": "seg.png", "groups": GROUPS}},
        }
    return config


@pytest.fixture(scope="module")
def run(joined: Any, raw: dict[str, Any]) -> Any:
    done = joined.minivit("run", joined.write(raw), timeout_s=560)
    assert done.code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def evaluation(joined: Any, run: Any) -> dict[str, Any]:
    return json.loads((joined.stage("dense", "evaluate") / "evaluation.json").read_text())["models"]


def test_it_learns_what_colours_mean(joined: Any, evaluation: dict[str, Any]) -> None:
    assert evaluation["pretrain"]["mean_iou"] > 0.6
    assert joined.status("dense", "pretrain")["result"]["measures"]["mean_iou"] > 0.6
    rows = joined.rows("dense", "pretrain")
    assert {"train/loss", "train/mean_iou", "train/pixel_accuracy"} <= set().union(*rows)


def test_every_labelled_pixel_is_judged_once(joined: Any, evaluation: dict[str, Any]) -> None:
    """Evaluates at the labels' own sizes, on two ranks that share thirteen scenes, without the bad one."""
    maps = [scene(2000 + number)[1] for number in range(COUNTS["test"]) if number != BAD]
    pixels = np.bincount(np.concatenate([one.ravel() for one in maps]), minlength=len(CLASSES))
    expected = {"wall": pixels[0], "bags": pixels[1], "footwear": pixels[2] + pixels[3]}
    with (joined.stage("dense", "evaluate") / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    for model, measures in evaluation.items():
        own = {row["class"]: row for row in rows if row["model"] == model}
        assert {name: int(row["pixels"]) for name, row in own.items()} == expected
        assert sum(int(row["predicted"]) for row in own.values()) == sum(expected.values())
        ious = [float(row["iou"]) for row in own.values()]
        assert measures["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-5)
        right = sum(int(row["right"]) for row in own.values())
        assert measures["pixel_accuracy"] == pytest.approx(right / sum(expected.values()))
        assert (measures["samples"], measures["bad_samples"]) == (COUNTS["test"] - 1, 1)


def test_another_number_of_ranks_finds_the_same(joined: Any, evaluation: dict[str, Any]) -> None:
    judged = ["runs/dense/pretrain", "--data", "pipeline.yaml:test", "--workers", "1", "--json"]
    done = joined.minivit("evaluate", *judged)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["models"]["runs/dense/pretrain"] == pytest.approx(evaluation["pretrain"], rel=1e-5)


def test_windows_over_larger_views_find_finer_borders(joined: Any, evaluation: dict[str, Any]) -> None:
    task = "{type: segmentation, inference: {size: 64, stride: 16}}"
    judged = ["runs/dense/pretrain", "--data", "pipeline.yaml:test", "--workers", "1", "--json", "--task", task]
    done = joined.minivit("evaluate", *judged)
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)["models"]["runs/dense/pretrain"]
    assert found["mean_iou"] > evaluation["pretrain"]["mean_iou"]
    assert found["samples"] == COUNTS["test"] - 1


def test_a_new_head_takes_the_place_of_the_old(joined: Any, run: Any) -> None:
    surgery = (joined.stage("dense", "larger") / "surgery.txt").read_text()
    assert "seg_head.classes.weight" in surgery
    assert "seg_head.class_tokens" in surgery


def test_predictions_have_the_images_own_sizes(joined: Any, run: Any, tmp_path: Path) -> None:
    picture, classes = scene(5000)
    path = tmp_path / "scene.png"
    path.write_bytes(png(picture))
    for place in (joined.stage("dense", "pretrain"), joined.stage("dense", "export") / "export" / "safetensors"):
        [found] = load_model(place).predict([path])
        group = np.array([0, 1, 2, 2, -1])[classes]
        assert found.shape == classes.shape
        assert (found == group)[group >= 0].mean() > 0.8


def test_predictions_are_drawn_for_the_report(joined: Any, run: Any) -> None:
    pictures = sorted((joined.stage("dense", "evaluate") / "pictures").glob("segmentation-*.png"))
    assert len(pictures) == 2 * 8  # of both models the first nine scenes but the bad one
    report = (joined.folder / "runs" / "dense" / "report.html").read_text()
    assert "Segmentations" in report
    assert "Mean IoU" in report
