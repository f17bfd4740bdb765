"""Evaluation of real bundles on real shards, some of whose images are torn, on the one rank of this process."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.task import default_task
from pipeline.errors import DataError
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.confusion import ConfusionCounts
from pipeline.metrics.pictures import read_pictures, save_picture
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.probe.interval import wilson
from pipeline.shards.build import build_index
from pipeline.shards.write import ShardWriter
from pipeline.stream.source import Source
from pipeline.targets.class_id import ClassId
from pipeline.tasks.examples import MOST
from pipeline.train.evaluate import evaluate_worker, publish
from pipeline.train.job import EvaluateJob, RankContext
from pipeline.train.stall import StallWatch

SAMPLES = 40
BAD = {3, 17, 39}

pytestmark = pytest.mark.usefixtures("one_rank")


def write_shards(folder: Path, samples: int, bad: set[int], num_classes: int) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "test", samples // 2) as writer:
        for number in range(samples):
            file = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(file, "PNG")
            data = file.getvalue()
            label = str((num_classes - 1 - number) % num_classes).encode()
            writer.write(f"s{number}", {"png": data[:-30] if number in bad else data, "cls": label})


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Path]:
    """Evaluates two models of random weights; returns the stage's folder."""

    def run(
        *, num_classes: int = 4, samples: int = SAMPLES, bad: set[int] = BAD, precision: str = "fp32", workers: int = 0
    ) -> Path:
        (tmp_path / "data").mkdir()
        write_shards(tmp_path / "data", samples, bad, num_classes)
        index = build_index(str(tmp_path / "data"), workers=1)
        classes = [f"class {number}" for number in range(num_classes)]
        spec = build_spec("nano", image_size=8, patch_size=4, channels=1, num_classes=num_classes, depth=1)
        models = {}
        for name in ("first", "second"):
            torch.manual_seed(len(name))
            state = MiniViT.from_spec(spec).state_dict()
            models[name] = tmp_path / name
            Bundle(state, spec, Preprocess((0.5,), (0.5,), 1, (8, 8)), classes).save(models[name])
        targets = {"class_id": ClassId(("cls",), tuple(range(num_classes)), num_classes)}
        job = EvaluateJob(
            folder=tmp_path / "stage",
            models=models,
            task=default_task(),
            data=Source("test", index, DatasetConfig(shards=str(tmp_path / "data")), AugmentConfig(), 1, targets),
            classes=classes,
            batch_size=8,
            loader_workers=workers,
            precision=precision,
        )
        evaluate_worker(job, RankContext(StallWatch(600.0, tmp_path / "log"), leaving_nodes=tuple))
        return job.folder

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bad_images_are_counted_and_named(evaluate: Callable[..., Path], precision: str) -> None:
    folder = evaluate(precision=precision, workers=2)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["precision"] == precision
    assert (evaluation["samples"], evaluation["bad_samples"]["bad"]) == (SAMPLES, len(BAD))
    [reason] = evaluation["bad_samples"]["reasons"]
    assert (reason["count"], reason["first"]) == (len(BAD), "test-000000.tar/s3")
    assert "the image cannot be decoded" in reason["reason"]
    for figures in evaluation["models"].values():
        assert (figures["samples"], figures["bad_samples"]) == (SAMPLES - len(BAD), len(BAD))
        assert 0 < figures["loss"] < 5
    noted = [json.loads(line) for file in folder.glob("quarantine.*") for line in file.read_text().splitlines()]
    assert {line["key"] for line in noted} == {f"s{number}" for number in BAD}


def test_figures_per_class_and_confusions_agree_with_the_summary(evaluate: Callable[..., Path]) -> None:
    folder = evaluate()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    with np.load(folder / "confusion.npz") as arrays:
        kept = dict(arrays)
    assert kept["classes"].tolist() == [f"class {number}" for number in range(4)]
    shown = Counter(picture.title.partition(":")[0] for _, picture in read_pictures(folder))
    assert shown.keys() == {
        f"{what} by {name}" for what in ("Predictions", "Worst mistakes") for name in ("first", "second")
    }
    assert max(shown.values()) == MOST
    for number, (model, figures) in enumerate(evaluation["models"].items()):
        per_class = [row for row in rows if row["model"] == model]
        assert [row["class"] for row in per_class] == kept["classes"].tolist()
        samples, right, predicted = (
            np.array([int(row[name]) for row in per_class]) for name in ("samples", "right", "predicted")
        )
        assert samples.tolist() == [8, 10, 9, 10]  # of ten each, without the bad ones
        assert right.sum() / samples.sum() == pytest.approx(figures["accuracy"])
        matrix = np.zeros((4, 4), int)
        matrix[*kept[f"arr_{number}"][:, :2].T] = kept[f"arr_{number}"][:, 2]
        assert matrix.sum(axis=1).tolist() == samples.tolist()
        assert matrix.sum(axis=0).tolist() == predicted.tolist()
        assert matrix.diagonal().tolist() == right.tolist()


def test_the_intervals_of_accuracies_and_of_collectors_are_recorded_with_each_model(
    evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Resampled(ConfusionCounts):
        """A class of its own, because `isinstance` remembers which classes satisfy a protocol."""

        def intervals(self) -> dict[str, Interval]:
            return {"top5": (0.25, 0.75)}

    monkeypatch.setattr("pipeline.tasks.classification.module.ConfusionCounts", Resampled)
    evaluation = json.loads((evaluate() / "evaluation.json").read_text())
    for found in evaluation["models"].values():
        assert found["intervals"].keys() == {"accuracy", "top5"}
        assert found["intervals"]["top5"] == [0.25, 0.75]
        low, high = found["intervals"]["accuracy"]
        assert low < found["accuracy"] < high
        assert (low, high) == wilson(round(found["accuracy"] * found["samples"]), found["samples"])


def test_the_summary_does_not_grow_with_the_classes(evaluate: Callable[..., Path]) -> None:
    folder = evaluate(num_classes=40_000)
    assert (folder / "evaluation.json").stat().st_size < 4096
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200 * 40_000  # and the rest only in proportion
    with (folder / "per_class.csv").open() as file:
        assert sum(1 for _ in file) == 1 + 2 * 40_000


def test_too_many_bad_images_end_it_before_the_pass_is_over(
    evaluate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    forward = MiniViT.forward
    monkeypatch.setattr(MiniViT, "forward", lambda model, images: shown.append(len(images)) or forward(model, images))
    with pytest.raises(DataError, match="64 bad samples in a row"):
        evaluate(samples=400, bad=set(range(8, 400)), workers=0)
    assert sum(shown) < 200


def test_names_of_classes_are_text(evaluate: Callable[..., Path]) -> None:
    """Nothing of the arrays is pickled."""
    folder = evaluate()
    with np.load(folder / "confusion.npz", allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.kind for name in arrays.files} == {"classes": "U", "arr_0": "i", "arr_1": "i"}
    assert not os.path.exists(folder / "confusion.npz.npz")


def test_what_an_attempt_that_was_killed_left_is_not_in_the_files(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    stage = tmp_path / "stage"
    for folder in (stage / ".drafts", stage):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "per_class.csv").write_text("model,class\nhalf")
    assert evaluate() == stage
    assert len((stage / "per_class.csv").read_text().splitlines()) == 1 + 2 * 4
    assert not (stage / ".drafts").exists()


def test_files_that_replace_older_ones_replace_whole_folders(tmp_path: Path) -> None:
    for folder, name in ((tmp_path / "stage", "old"), (tmp_path / "drafts", "new")):
        save_picture(folder, name, np.zeros((2, 2), np.uint8), "title", name)
    publish(tmp_path / "drafts", tmp_path / "stage")
    assert [picture.caption for _, picture in read_pictures(tmp_path / "stage")] == ["new"]
    assert not (tmp_path / "drafts").exists()
