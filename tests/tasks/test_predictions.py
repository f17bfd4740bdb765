from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.config.task import task_class
from pipeline.errors import DataError, ModelError
from pipeline.images.class_map import decode_class_map
from pipeline.models import MiniViT, ModelSpec, Preprocess
from pipeline.models.bundle import Bundle
from pipeline.models.variants import build_backbone
from pipeline.shards.pictures import pictures
from pipeline.tasks.coco_results import CocoIds
from pipeline.tasks.predictions import Predictor, png_of, write_predictions
from pipeline.tasks.pretrained import PretrainedMiniViT
from pipeline.tasks.task import task_of


def model_of(kind: str) -> PretrainedMiniViT:
    """An untrained model of a task with three classes."""
    task = task_of(task_class(kind)())
    backbone = build_backbone("nano", image_size=16, patch_size=4, depth=2, embed_dim=32, num_heads=2)
    spec = ModelSpec(backbone, task.heads(backbone, 3), kind)
    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, 3, (16, 16))
    bundle = Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, ["wall", "bag", "shoe"])
    return PretrainedMiniViT.from_bundle(bundle)


def test_maps_are_kept_beside_the_drawn_picture(tmp_path: Path) -> None:
    model = model_of("segmentation")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    write_predictions(Predictor(model), pictures([str(tmp_path)]), tmp_path / "out")
    row = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert row["files"] == ["x.png.seg.png", "x.png.drawn.jpg"]
    kept = decode_class_map((tmp_path / "out" / "x.png.seg.png").read_bytes())
    (predicted,) = model.predict([tmp_path / "x.png"])
    assert (kept == predicted).all()
    assert sum(row["classes"].values()) == pytest.approx(1)


def test_depth_beyond_what_a_map_holds_is_counted_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("far.png", "near.png", "other.png"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    depths = [np.full((4, 6), depth, np.float32) for depth in (65.535, 65.535, 1.0)]
    depths[0][0, :3], depths[1][1, 1] = 65.537, 900
    predictor = Predictor(model_of("depth"))
    monkeypatch.setattr(predictor.task, "predict", lambda images, sizes, **options: depths)
    write_predictions(predictor, pictures([str(tmp_path)]), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row.get("clipped_pixels") for row in rows] == [3, 1, None]
    [told] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clipped: ")]
    assert told == (
        "clipped: 4 pixels in the maps of 2 of 3 images, such as "
        f"{rows[0]['image']}, exceed the most that these files hold, 65.535 m; "
        f"clipped_pixels in {tmp_path / 'out' / 'predictions.jsonl'} counts them for each image"
    )


def test_paths_pictures_and_arrays_are_predicted_alike(tmp_path: Path) -> None:
    model = model_of("segmentation")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    first, *others = model.predict([tmp_path / "x.png", Image.fromarray(pixels), pixels])
    for other in others:
        assert (first == other).all()


def test_boxes_are_written_as_coco_has_them(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    out = tmp_path / "out"
    write_predictions(Predictor(model_of("detection"), {"score": 0.0}), pictures([str(tmp_path)]), out, CocoIds())
    row = json.loads((out / "predictions.jsonl").read_text())
    results = json.loads((out / "coco_results.json").read_text())
    assert len(results) == len(row["boxes"]) > 0
    for (x0, y0, x1, y1), one in zip(row["boxes"], results, strict=True):
        assert one["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
        assert one["image_id"] == 1
    assert row["files"] == ["x.png.drawn.jpg"]


def test_each_image_has_its_own_boxes_whatever_the_batches(tmp_path: Path) -> None:
    for name in ("a", "b", "d"):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    boxes = [[[n, 0, n + 9, 9]] for n in range(4)]
    found, out = pictures([str(tmp_path)]), tmp_path / "out"
    with pytest.raises(DataError, match="1 of 4 images could not be read"):
        write_predictions(Predictor(model_of("keypoints"), {"boxes": boxes}, batch_size=3), found, out)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(Path(row["image"]).name, row["boxes"]) for row in rows] == [
        ("a.png", boxes[0]), ("b.png", boxes[1]), ("d.png", boxes[3])
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"^predict: boxes has 1 entries for 4 images; give one for each"):
        write_predictions(Predictor(model_of("keypoints"), {"boxes": boxes[:1]}), found, out)
    assert (out / "predictions.jsonl").read_text(), "earlier predictions stay"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("detection", {"score": "high"}, "score is 'high', expected a number"),
        ("classification", {"top_k": 0}, "top_k is 0, expected a whole number from 1 up"),
        ("classification", {"top_k": 1.5}, "top_k is 1.5, expected a whole number from 1 up"),
        ("keypoints", {"boxes": 7}, "boxes is 7, expected a list with an entry for each image"),
        ("keypoints", {"boxes": []}, "boxes has 0 entries for 1 images; give one for each"),
    ],
)
def test_an_option_of_another_type_is_refused(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=f"^predict: {said}"):
        model_of(kind).predict([np.zeros((16, 16, 3), np.uint8)], **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_hold_every_value(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (5, 7)).astype(dtype)
    found = cv2.imdecode(np.frombuffer(png_of(values), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found.dtype == dtype
    assert (found == values).all()


def test_colours_are_red_first(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(png_of(values))
    assert (np.asarray(Image.open(tmp_path / "x.png")) == values).all()
