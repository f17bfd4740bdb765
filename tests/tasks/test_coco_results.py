from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, ModelError
from pipeline.shards.pictures import FoundImage
from pipeline.tasks.coco_results import CocoIds, CocoResults

RECORD = {"boxes": [[1, 2, 4, 6], [0, 0, 2, 1]], "scores": [0.9, 0.5], "labels": ["bag", "dog"], "classes": [0, 1]}


def found(below: str, **members: bytes) -> FoundImage:
    return FoundImage(f"/data/{below}", below, b"", members=members)


def annotation_file(path: Path, images: list[dict[str, Any]]) -> Path:
    categories = [{"id": 27, "name": "bag"}, {"id": 18, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    return path


def test_pycocotools_reads_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    images = [{"id": 139, "file_name": "000139.jpg", "width": 9, "height": 9}]
    path = annotation_file(tmp_path / "instances.json", images)
    results = CocoResults(CocoIds.read(path))
    results.add(found("val/000139.jpg"), RECORD)
    (tmp_path / "results.json").write_text(json.dumps(results.rows))
    loaded = COCO(str(path)).loadRes(str(tmp_path / "results.json"))
    boxes = [(one["image_id"], one["category_id"], one["bbox"], one["score"]) for one in loaded.anns.values()]
    assert boxes == [(139, 27, [1, 2, 3, 4], 0.9), (139, 18, [0, 0, 2, 1], 0.5)]


def test_a_sample_of_a_shard_says_its_id() -> None:
    results = CocoResults(CocoIds())
    results.add(found("train-000000/00000003-x", json=b'{"image_id": 77}'), RECORD)
    assert {row["image_id"] for row in results.rows} == {77}
    with pytest.raises(DataError, match="both have the image id 77"):
        results.add(found("train-000000/00000004-x", json=b'{"image_id": 77}'), RECORD)


def test_without_ids_images_are_numbered_and_classes_are_categories() -> None:
    results = CocoResults(CocoIds())
    for name in ("a/x.jpg", "b/x.jpg"):
        results.add(found(name), RECORD)
    assert [(row["image_id"], row["category_id"]) for row in results.rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_key_points_are_flat_and_scored_by_their_mean() -> None:
    results = CocoResults(CocoIds())
    results.add(found("x.jpg"), {"boxes": [[0, 0, 2, 2]], "keypoints": [[[1, 2, 0.5], [2, 2, 0.7]]]})
    (row,) = results.rows
    assert row["keypoints"] == [1, 2, 0.5, 2, 2, 0.7]
    assert row["score"] == pytest.approx(0.6)


def test_what_has_no_boxes_or_no_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="predicts no boxes"):
        CocoResults(CocoIds()).add(found("x.jpg"), {"classes": {"bag": 1.0}})
    ids = CocoIds.read(annotation_file(tmp_path / "a.json", [{"id": 1, "file_name": "x.jpg"}]))
    with pytest.raises(DataError, match="found no image 'y'"):
        CocoResults(ids).add(found("y.jpg"), RECORD)
    with pytest.raises(DataError, match="found no category 'cat'"):
        CocoResults(ids).add(found("x.jpg"), RECORD | {"labels": ["cat", "cat"]})
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DataError, match="not a COCO annotation file"):
        CocoIds.read(tmp_path / "b.json")
    with pytest.raises(DataError, match="cannot be read"):
        CocoIds.read(tmp_path / "c.json")
