"""The work between steps of a real stage on one rank: when the state is committed, and what is reported."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.bench.synthetic import CLASSES, SIDE, write_shards
from pipeline.checkpoints.manifest import verify_checkpoint
from pipeline.checkpoints.selection import committed, step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.config.data import AugmentConfig, DatasetConfig
from pipeline.config.probe import OnlineKnnConfig
from pipeline.config.train_stage import TrainStage
from pipeline.config.training import EngineConfig, OptimizerConfig
from pipeline.errors import DataError
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.shards.bad_samples import TRAIN, VAL, read_quarantine
from pipeline.shards.build import build_index
from pipeline.shards.index_file import load_index
from pipeline.shards.write import TarWriter
from pipeline.stream.source import Source
from pipeline.targets.class_id import ClassId
from pipeline.tasks.pretrained import PretrainedMiniViT
from pipeline.tasks.simdino import Task as SimDINO
from pipeline.tasks.task import task_of
from pipeline.train.evaluate import evaluate_collective
from pipeline.train.finished_model import save_finished_collective
from pipeline.train.job import KnnJob, RankContext, TrainJob
from pipeline.train.ledger import read_metrics
from pipeline.train.saver import ATTEMPT
from pipeline.train.stall import StallWatch
from pipeline.train.worker import TrainWorker, train_worker

STEPS, NEVER = 24, 10**6

pytestmark = pytest.mark.usefixtures("one_rank", "rank_environment")

Make = Callable[..., TrainJob]
Metrics = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def rank_environment() -> Iterator[None]:
    """What DeepSpeed asks the environment of a rank."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Small data sets for training and validation."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    write_shards(folder)
    named = {name: f"{folder}/{name}-*.tar" for name in ("train", "val")}
    return {
        name: Source(
            name,
            load_index(shards),
            DatasetConfig(shards=shards, mean=(0.4,), std=(0.3,)),
            AugmentConfig(crop="none"),
            1,
            {"class_id": ClassId(("cls",), tuple(range(len(CLASSES))), len(CLASSES))},
        )
        for name, shards in named.items()
    }


@pytest.fixture(scope="module")
def make_job(sources: dict[str, Source]) -> Make:
    """A stage in a folder; its rate is so high that validations get worse now and then."""

    def make(folder: Path, checkpoint: dict[str, Any], knn: OnlineKnnConfig | None = None, **changes: Any) -> TrainJob:
        spec = build_spec("nano", image_size=SIDE, channels=1, num_classes=4, depth=1, embed_dim=16, num_heads=1)
        stage = TrainStage.model_validate(
            {
                "type": "pretrain",
                "model": {"variant": "nano", "image_size": SIDE, "channels": 1},
                "data": {"train": "train", "val": "val", "lanes": 8, "window": 8, "loader_workers": 0},
                "duration": f"{STEPS} steps",
                "global_batch_size": 8,
                "optimizer": {"lr": 0.1, "weight_decay": 0.0},
                "schedule": {"name": "constant"},
                "ema": 0.5,
                "engine": {"precision": "fp32"},
                "checkpoint": {"keep_last": 99, **checkpoint},
                "eval": {"knn": knn},
            }
        )
        folder.mkdir(exist_ok=True)
        (folder / ATTEMPT).write_text("mine")
        job = TrainJob(
            folder=folder,
            stage=stage,
            spec=spec,
            preprocess=Preprocess((0.4,), (0.3,), 1, spec.backbone.image_size),
            classes=CLASSES,
            train=[sources["train"]],
            val=sources["val"],
            seed=3,
            samples_per_epoch=96,
            total_steps=STEPS,
            warmup_steps=0,
            decay_steps=0,
            checkpoint_steps=NEVER,
            keep_steps=None,
            eval_steps=2,
            digest="d",
            run_ids={},
            attempt="mine",
            checkpoints=str(folder / "checkpoints"),
            init=None,
            resume_from=None,
            measured={},
        )
        return replace(job, **changes)

    return make


@pytest.fixture(scope="module")
def steady(
    one_rank: None, rank_environment: None, make_job: Make, tmp_path_factory: pytest.TempPathFactory
) -> TrainJob:
    """A finished job that committed every three steps and was validated every two."""
    job = make_job(tmp_path_factory.mktemp("steady"), {}, checkpoint_steps=3)
    train_worker(job, context(job))
    return job


def context(job: TrainJob) -> RankContext:
    return RankContext(StallWatch(600.0, job.folder / "rank.log"), lambda: ())


def measured(job: TrainJob) -> Metrics:
    """Step -> what the manifest of its checkpoint says."""
    return {m.step: m.metrics for m in committed(LocalStorage(Path(job.checkpoints))).values() if m}


def validations(job: TrainJob) -> Metrics:
    """Step -> the metrics of its validation, from the ledger."""
    rows = [row for row in read_metrics(job.folder) if "val/loss" in row]
    return {int(row["step"]): {name: v for name, v in row.items() if name.startswith("val/")} for row in rows}


def ever_better(losses: dict[int, float]) -> set[int]:
    """The steps whose loss is below all before."""
    return {step for step in losses if all(losses[step] < losses[before] for before in losses if before < step)}


def test_a_checkpoint_has_the_metrics_of_its_own_weights_or_none(steady: TrainJob) -> None:
    validated = validations(steady)
    assert measured(steady) == {step: validated.get(step, {}) for step in range(3, STEPS + 1, 3)}
    assert validated.keys() == set(range(2, STEPS + 1, 2))


def test_every_validation_that_beats_the_best_is_committed(steady: TrainJob, make_job: Make, tmp_path: Path) -> None:
    """Also by a run that resumes at the best: what came before still counts."""
    losses = {step: metrics["val/loss"] for step, metrics in validations(steady).items()}
    shorter = ({step: loss for step, loss in losses.items() if step <= last} for last in losses)
    losses = next(some for some in shorter if max(ever_better(some)) <= max(some) - 4)  # it then got worse, twice
    best, last = max(ever_better(losses)), max(losses)
    job = make_job(tmp_path, {"keep_best": "val/loss"}, total_steps=last)
    train_worker(job, context(job))
    expected = {step: validations(job)[step] for step in ever_better(losses) | {last}}
    assert measured(job) == expected

    LocalStorage(Path(job.checkpoints)).remove_folder(step_folder(last))
    train_worker(replace(job, resume_from=step_folder(best), measured=measured(job)), context(job))
    assert measured(job) == expected


def test_what_was_measured_is_what_a_checkpoint_hands_over(steady: TrainJob) -> None:
    """The average of the weights: that was validated, and that is exported."""
    storage, folder = LocalStorage(Path(steady.checkpoints)), step_folder(6)
    model = MiniViT.from_spec(steady.spec)
    model.load_state_dict(StateReader(storage, folder, verify_checkpoint(storage, folder)).model_state())
    worker = TrainWorker(replace(steady, resume_from=folder), context(steady))
    try:
        data = worker.validation.loader(steady.val)
        task = task_of(steady.stage.task).module(model, CLASSES, steady.preprocess)
        means = evaluate_collective(task, data)
    finally:
        worker.close()
    assert {f"val/{name}": value for name, value in means.items()} == pytest.approx(measured(steady)[6], rel=1e-5)


def test_the_teacher_is_validated_and_is_the_finished_model(make_job: Make, tmp_path: Path) -> None:
    job, task = make_job(tmp_path, {}, total_steps=4), SimDINO(momentum=0.5)
    stage = job.stage.model_copy(update={"task": task, "ema": None})
    job = replace(job, stage=stage, spec=task.model_spec(job.spec.backbone, 0), classes=[])
    train_worker(job, context(job))
    storage, folder = LocalStorage(Path(job.checkpoints)), step_folder(4)
    reader = StateReader(storage, folder, verify_checkpoint(storage, folder))
    weights, teacher, finished = reader.whole("weights"), reader.whole("teacher"), load_bundle(job.folder / "model")
    assert finished.state.keys() == teacher.keys()
    assert all(torch.equal(finished.state[name], value) for name, value in teacher.items())
    assert not all(torch.equal(weights[name], value) for name, value in teacher.items())
    worker = TrainWorker(replace(job, resume_from=folder), context(job))
    try:
        worker._evaluate_collective()
        again = worker.val_metrics["val/effective_rank"]
    finally:
        worker.close()
    module = task.module(PretrainedMiniViT.from_bundle(finished), [], job.preprocess)
    spectrum = module.collectors(validation=True)
    found = evaluate_collective(module, worker.validation.loader(job.val), collectors=spectrum.values())
    assert found["effective_rank"] == pytest.approx(measured(job)[4]["val/effective_rank"], rel=1e-5)
    assert again == pytest.approx(found["effective_rank"], rel=1e-5)
    speeds = [row for row in read_metrics(job.folder) if "speed/tokens_per_s" in row]
    tokens = 2 * (job.spec.backbone.num_patches + 1)  # two views
    assert speeds
    assert all(row["speed/tokens_per_s"] == pytest.approx(tokens * row["speed/images_per_s"]) for row in speeds)


@pytest.mark.parametrize("task", [None, SimDINO(momentum=0.5)], ids=["labels", "moving teacher"])
def test_what_is_frozen_is_handed_over_as_it_came(make_job: Make, tmp_path: Path, task: SimDINO | None) -> None:
    """To the last digit, though the engine computes in bf16; also by a run that was resumed."""
    job = make_job(tmp_path, {}, total_steps=4, checkpoint_steps=2, eval_steps=NEVER)
    stage = job.stage.model_copy(
        update={
            "optimizer": OptimizerConfig(lr=0.01, freeze=1.0),
            "engine": EngineConfig(precision="bf16"),
            "ema": None if task else 0.5,
            "task": task or job.stage.task,
        }
    )
    spec = task.model_spec(job.spec.backbone, 0) if task else job.spec
    given, classes = MiniViT.from_spec(spec).state_dict(), [] if task else CLASSES
    Bundle(given, spec, job.preprocess, classes).save(tmp_path / "init")
    job = replace(job, stage=stage, spec=spec, classes=classes, init=tmp_path / "init")
    train_worker(job, context(job))
    found = []
    for _ in range(2):
        found.append(load_bundle(job.folder / "model").state)
        train_worker(replace(job, resume_from=step_folder(2)), context(job))
    for name, value in given.items():
        of_head = name.partition(".")[0] in spec.heads
        assert of_head or torch.equal(found[0][name], value)
        assert torch.equal(found[0][name], found[1][name])
    assert not all(torch.equal(found[0][name], value) for name, value in given.items())


def test_neighbours_judge_a_stage_without_validation_data(
    make_job: Make, sources: dict[str, Source], tmp_path: Path
) -> None:
    config = OnlineKnnConfig(train="train", test="val", k=3)
    job = make_job(tmp_path, {"keep_best": "val/knn"}, val=None, total_steps=4, knn=config)
    job = replace(job, knn=KnnJob(sources["train"], sources["val"], len(CLASSES), config))
    train_worker(job, context(job))
    rows = [row for row in read_metrics(job.folder) if "val/knn" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert "val/loss" not in rows[0]
    assert rows[-1]["val/knn"] > 0.5
    assert measured(job)[4] == {"val/knn": rows[-1]["val/knn"]}


def test_data_of_which_nothing_is_good_stop_the_stage_at_its_first_batch(
    make_job: Make, sources: dict[str, Source], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    with TarWriter(shards / "train-0.tar") as tar:
        for number in range(96):
            tar.write(f"{number}", {"png": b"torn", "cls": b"0"})
        tar.finish()
    bad = replace(sources["train"], index=build_index(str(shards), workers=1))
    job = make_job(tmp_path / "stage", {}, train=[bad], checkpoint_steps=1)
    with pytest.raises(DataError, match=r"^stage: all of the first 8 samples are bad: no readable image header in 8"):
        train_worker(job, context(job))
    assert measured(job) == {}


class Recording(StallWatch):
    """It keeps the bytes that were told to it."""

    def __init__(self, log: Path) -> None:
        super().__init__(600.0, log)
        self.sizes: list[int] = []

    def progress(self, size: int) -> None:
        self.sizes.append(size)
        super().progress(size)


def test_bytes_are_signs_of_life_while_a_state_is_loaded_and_a_model_assembled(steady: TrainJob) -> None:
    storage, folder = LocalStorage(Path(steady.checkpoints)), step_folder(STEPS)
    kept = StateReader(storage, folder, verify_checkpoint(storage, folder)).bytes_by_key()
    watch = Recording(steady.folder / "rank.log")
    worker = TrainWorker(replace(steady, resume_from=folder), RankContext(watch, lambda: ()))
    assert sum(watch.sizes) >= sum(kept.values())
    watch.sizes.clear()
    save_finished_collective(worker.job, worker.engine.model, worker.step, worker.val_metrics, watch)
    assert sum(watch.sizes) >= kept["ema"]  # of which the finished model is made
    worker.close()
    watch.close()


def bad_counts(job: TrainJob, name: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a count."""
    return [(int(row["step"]), row[name]) for row in read_metrics(job.folder) if name in row]


def test_bad_samples_count_once_over_epochs_and_restarts(
    make_job: Make, sources: dict[str, Source], tmp_path: Path
) -> None:
    """In two epochs of the training data, and in each of the validations, all met before and after a restart."""
    torn = {name: tear(source, tmp_path / name, every=12) for name, source in sources.items()}
    expected = {name: -(-source.index.num_samples // 12) for name, source in torn.items()}
    data = {"train": [torn["train"]], "val": torn["val"], "checkpoint_steps": 3}
    job = make_job(tmp_path / "stage", {}, total_steps=15, **data)
    train_worker(job, context(job))
    again = replace(job, total_steps=STEPS, resume_from=step_folder(15), measured=measured(job))
    train_worker(again, context(job))
    assert len(read_quarantine(job.folder / TRAIN)) == expected["train"]
    assert len(read_quarantine(job.folder / VAL)) == expected["val"]
    assert bad_counts(job, "data/bad_samples")[-1] == (STEPS, expected["train"])
    assert {count for _, count in bad_counts(job, "val/bad_samples")} == {expected["val"]}
    assert {count for _, count in bad_counts(job, "val/samples")} == {21 - expected["val"]}

    rows = bad_counts(job, "data/bad_samples")
    train_worker(replace(again, resume_from=step_folder(STEPS), measured=measured(job)), context(job))
    assert bad_counts(job, "data/bad_samples") == rows  # a driver that was killed at the very end adds none


def tear(source: Source, folder: Path, every: int) -> Source:
    """A copy of a data set in which one image of so many is all zeros."""
    folder.mkdir()
    for shard in source.index.shards:
        path = Path(shutil.copy(shard.url, folder))
        with tarfile.open(path) as tar:
            images = [member for member in tar if member.name.endswith(".png")]
        with path.open("r+b") as file:
            for image in images[::every]:
                file.seek(image.offset_data)
                file.write(bytes(image.size))
    return replace(source, index=build_index(str(folder), workers=1))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_samples_that_are_mixed_have_no_accuracy_but_validation_has(
    make_job: Make, sources: dict[str, Source], tmp_path: Path, mixup: float
) -> None:
    source = replace(sources["train"], augment=AugmentConfig(crop="none", mixup=mixup))
    job = make_job(tmp_path, {}, total_steps=2, train=[source])
    train_worker(job, context(job))
    logged = {name for row in read_metrics(job.folder) for name in row}
    assert {"train/loss", "val/accuracy"} <= logged
    assert ("train/accuracy" in logged) == (mixup == 0)
