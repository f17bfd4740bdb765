"""Probes of real bundles on real shards, some of whose images are torn, on the one rank of this process."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.probe import KnnConfig, LinearConfig, MethodsConfig, RetrievalConfig
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone
from pipeline.shards.build import build_index
from pipeline.shards.write import ShardWriter
from pipeline.stream.source import Source
from pipeline.targets.class_id import ClassId
from pipeline.train.features import labelled_batches
from pipeline.train.job import ProbedModel, ProbeJob, RankContext
from pipeline.train.probe import part_of, probe_worker
from pipeline.train.progress import read_progress
from pipeline.train.stall import StallWatch

CLASSES = 3
BACKBONE = build_backbone("nano", image_size=8, patch_size=4, channels=1, depth=1)
SIZES, BAD = {"train": 60, "test": 24}, {"train": {3, 50}, "test": {7}}
METHODS = MethodsConfig(knn=KnnConfig(k=[1, 5]), linear=LinearConfig(l2=[1e-2]), retrieval=RetrievalConfig(at=[1]))

pytestmark = pytest.mark.usefixtures("one_rank")


def source(folder: Path, name: str) -> Source:
    """Grey images as bright as their class."""
    place = folder / name
    place.mkdir()
    rng = np.random.default_rng(SIZES[name])
    with ShardWriter(place, name, 25) as writer:
        for number in range(SIZES[name]):
            file, label = io.BytesIO(), number % CLASSES
            Image.fromarray(rng.integers(80 * label, 80 * label + 90, (8, 8), dtype=np.uint8)).save(file, "PNG")
            data = file.getvalue()[: -30 if number in BAD[name] else None]
            writer.write(f"s{number}", {"png": data, "cls": str(label).encode()})
    targets = {"class_id": ClassId(("cls",), tuple(range(CLASSES)), CLASSES)}
    index = build_index(str(place), workers=1)
    return Source(name, index, DatasetConfig(shards=str(place)), AugmentConfig(), 1, targets)


@pytest.fixture
def job(tmp_path: Path) -> ProbeJob:
    """A classifier and a model that predicts pixels, with both baselines."""
    models = {}
    for name, heads in (("classifier", {"mlp_head": HeadSpec("classifier", 7)}), ("pixels of patches", {})):
        torch.manual_seed(len(name))
        spec = ModelSpec(BACKBONE, heads)
        preprocess = Preprocess((0.5,), (0.5,), 1, (8, 8))
        Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(tmp_path / name)
        models[name] = ProbedModel(tmp_path / name)
    models |= {name: ProbedModel(tmp_path / "classifier", name) for name in ("random", "pixels")}
    return ProbeJob(
        folder=tmp_path / "stage",
        models=models,
        train=source(tmp_path, "train"),
        test=source(tmp_path, "test"),
        classes=[str(number) for number in range(CLASSES)],
        methods=METHODS,
        features="both",
        seed=0,
        batch_size=16,
        loader_workers=0,
        precision="fp32",
    )


def run(job: ProbeJob) -> dict[str, dict[str, float]]:
    probe_worker(job, RankContext(StallWatch(600.0, job.folder.parent / "log"), leaving_nodes=tuple))
    found = json.loads((job.folder / "probe.json").read_text())
    assert list(found["models"]) == list(job.models)
    return found["models"]


def test_every_model_on_the_good_images(job: ProbeJob) -> None:
    models = run(job)
    for name, found in models.items():
        assert (found["train_samples"], found["samples"]) == (58, 23)
        assert found.keys() >= {"knn", "linear", "recall_at_1", "map", "intervals", "chosen"}
        assert found["width"] == (64 if name == "pixels" else 128)
    assert models["pixels"]["linear"] == 1.0
    assert models["random"]["knn"] > 0.6
    summary = json.loads((job.folder / "probe.json").read_text())
    assert {what: bad["bad"] for what, bad in summary["bad_samples"].items()} == {"train": 2, "test": 1}
    assert summary["samples"] == {"train": 60, "test": 24}
    assert read_progress(job.folder).words.startswith("pixels: ")


def test_transparent_pixels_show_each_model_s_own_background(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("LA", (8, 8), (255, 0)).save(file, "PNG")
    with ShardWriter(tmp_path, "train", 2) as writer:
        for number in range(2):
            writer.write(f"s{number}", {"png": file.getvalue(), "cls": str(number).encode()})
    targets = {"class_id": ClassId(("cls",), (0, 1), 2)}
    data = Source(
        "t", build_index(str(tmp_path), workers=1), DatasetConfig(shards="unused"), AugmentConfig(), 1, targets
    )
    for grey in (0, 90):
        preprocess = Preprocess((0.5,), (0.5,), 1, (8, 8), background=(grey,) * 3)
        (batch,) = labelled_batches(data, preprocess, batch_size=2, loader_workers=0, quarantine_path=None)
        assert batch.views["image"].unique().tolist() == [grey]


def test_initial_weights_are_those_of_the_seed(job: ProbeJob) -> None:
    alone = replace(job, models={"random": job.models["random"]}, methods=MethodsConfig(retrieval=METHODS.retrieval))
    assert run(alone) == run(alone)
    assert run(alone)["random"]["map"] != run(replace(alone, seed=1))["random"]["map"]


def test_a_model_that_is_done_is_not_measured_again(job: ProbeJob) -> None:
    first = run(replace(job, models={"classifier": job.models["classifier"]}))
    files = [part_of(job, name) for name in job.models]
    assert [file.is_file() for file in files] == [True, False, False, False]
    kept = {"classifier": json.loads(files[0].read_text()) | {"knn": -1.0}}
    models = run(replace(job, done=kept))
    assert models["classifier"] == first["classifier"] | {"knn": -1.0}
    assert all(file.is_file() for file in files)
