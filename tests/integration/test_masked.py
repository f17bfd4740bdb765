"""Pretraining without labels, then fine-tuning with labels: one run for all tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import load_model
from pipeline.metrics.pictures import read_pictures

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RUN = "masked"
DATA = {"train": "train", "test": "test"}  # of the probe


@pytest.fixture(scope="module")
def run(joined: Any, kit: Any, shards: Path) -> Any:
    """MAE at several sizes under ZeRO-3; a classifier from it; its pictures and features."""
    several = {"mode": "random", "sizes": [kit.side - 4, kit.side, kit.side + 4]}
    neighbours = {"every": "6 steps", "knn": {"train": "train", "test": "val", "k": 3}}
    stages = {
        "mae": kit.pretrain(task={"type": "mae"}, resolution=several, engine={"zero_stage": 3}, eval=neighbours),
        "tuned": kit.pretrain(
            type="finetune", init_from="mae", model={"image_size": kit.side, "patch_size": 4, "channels": 1}
        ),
        "rebuild": {"type": "evaluate", "models": ["mae"], "data": "test"},
        "features": {"type": "probe", "models": ["mae", "random", "pixels"], "data": DATA},
        "report": {"type": "report"},
    }
    done = joined.minivit("run", joined.write(kit.config(shards, RUN, stages)), timeout_s=800)
    assert done.code == 0, done.stderr
    return done


def test_it_learns_without_labels(joined: Any, run: Any) -> None:
    losses = [row["val/loss"] for row in joined.rows(RUN, "mae") if "val/loss" in row]
    assert losses[-1] < losses[0]


def test_fine_tuning_starts_from_the_encoder_and_says_what_it_drops(joined: Any, run: Any) -> None:
    assert "the source's head 'decoder' (mae_decoder) is dropped" in run.stdout + run.stderr


def test_reconstructions_are_in_the_report(joined: Any, run: Any) -> None:
    pictures = read_pictures(joined.stage(RUN, "rebuild"))
    assert pictures
    assert {picture.title for _, picture in pictures} == {"Reconstructions by mae"}
    assert "Reconstructions by mae" in (joined.folder / "runs" / RUN / "report.html").read_text()


def test_neighbours_judge_the_features_while_they_are_learned(joined: Any, run: Any) -> None:
    assert [row["step"] for row in joined.rows(RUN, "mae") if "val/knn" in row] == [6, 12]


def test_the_command_finds_what_the_probe_stage_found_on_more_ranks(joined: Any, run: Any, shards: Path) -> None:
    found = json.loads((joined.stage(RUN, "features") / "probe.json").read_text())["models"]
    assert list(found) == ["mae", "random", "pixels"]
    assert found["pixels"]["linear"] > 0.9  # a class is a brightness
    assert "mae: kNN accuracy" in run.stdout + run.stderr
    assert "Frozen features" in (joined.folder / "runs" / RUN / "report.html").read_text()
    data = ["--train", f"{shards}/train-*.tar", "--data", f"{shards}/test-*.tar"]
    done = joined.minivit("evaluate", str(joined.stage(RUN, "mae")), "--probe", "knn,linear", *data, "--json")
    assert done.code == 0, done.stderr
    [model] = json.loads(done.stdout)["models"].values()
    assert model == found["mae"]


def test_a_pretrained_model_gives_features(joined: Any, run: Any, kit: Any, tmp_path: Path) -> None:
    model = load_model(joined.stage(RUN, "mae"))
    (tmp_path / "one.png").write_bytes(kit.noise_png(0, 0))
    [features] = model.predict([tmp_path / "one.png"])
    assert len(features) == model.spec.backbone.embed_dim
