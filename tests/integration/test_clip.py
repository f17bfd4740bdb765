"""An image-text model in one pipeline: trained on captions, evaluated by retrieval and by zero-shot classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import load_model
from pipeline.shards.build import build_index
from pipeline.shards.write import TarWriter

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

RUN = "clip"


@pytest.fixture(scope="module")
def captioned(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in four classes with one or two captions each; one sample's is not UTF-8."""
    folder = tmp_path_factory.mktemp("captioned")
    for split, samples in (("train", 96), ("val", 24), ("test", 24)):
        with TarWriter(folder / f"{split}-0.tar") as tar:
            for number in range(samples):
                label = number % len(kit.classes)
                text = "\n".join(f"{what} {kit.classes[label]} square" for what in ("a", "one")[: 1 + number % 2])
                caption = b"\xff" if (split, number) == ("train", 7) else text.encode()
                members = {"png": kit.noise_png(label, number), "cls": str(label).encode(), "txt": caption}
                tar.write(f"{split}-{number}", members)
            tar.finish()
    build_index(str(folder), classes=kit.classes, workers=1)
    return folder


@pytest.fixture(scope="module")
def run(joined: Any, kit: Any, captioned: Path) -> Any:
    task = {"type": "clip", "text": {"length": 12, "depth": 1}, "tokenizer": {"size": 270}}
    stages = {
        "pretrain": kit.pretrain(task=task, duration="24 steps", micro_batch_size=3, engine={"zero_stage": 3}),
        "retrieve": {"type": "evaluate", "models": ["pretrain"], "data": "test"},
        "name": {
            "type": "evaluate",
            "models": ["pretrain"],
            "data": "test",
            "task": {"type": "zero_shot", "templates": ["a {} square", "one {} square"]},
        },
        "export": {"type": "export", "model": "pretrain"},
        "report": {"type": "report"},
    }
    done = joined.minivit("run", joined.write(kit.config(captioned, RUN, stages)), timeout_s=800)
    assert done.code == 0, done.stderr
    return done


def test_it_learns_and_leaves_out_what_is_no_caption(joined: Any, run: Any) -> None:
    rows = joined.rows(RUN, "pretrain")
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    assert losses[-1] < losses[0]
    assert {row["data/bad_samples"] for row in rows if "data/bad_samples" in row} == {1.0}
    assert all(row["train/scale_at_bound"] == 0 for row in rows if "train/scale_at_bound" in row)


def test_it_is_judged_by_captions_and_by_names(joined: Any, run: Any) -> None:
    found = {
        stage: json.loads((joined.stage(RUN, stage) / "evaluation.json").read_text()) for stage in ("retrieve", "name")
    }
    retrieved, named = (evaluation["models"]["pretrain"] for evaluation in found.values())
    assert 0 < retrieved["image_to_text_r1"] <= retrieved["image_to_text_r5"]
    assert (found["name"]["classes"], found["retrieve"]["classes"]) == (4, 0)
    assert named["accuracy"] > 0.25
    assert (joined.stage(RUN, "retrieve") / "retrieval.csv").read_text().count("\n") == 7


def test_an_export_encodes_images_and_texts(joined: Any, run: Any, kit: Any, tmp_path: Path) -> None:
    exported = load_model(joined.stage(RUN, "export") / "export" / "safetensors")
    (tmp_path / "one.png").write_bytes(kit.noise_png(0, 0))
    images, texts = exported.encode_image([tmp_path / "one.png"]), exported.encode_text(["a black square", "words"])
    assert (images.shape, texts.shape) == ((1, 64), (2, 64))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        texts, load_model(joined.stage(RUN, "pretrain")).encode_text(["a black square", "words"])
    )
