from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples

WIDTH, HEIGHT = 40, 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four training images, the last without a label file, and two validation images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for n in range(count):
            path = tmp_path / "data" / "images" / split / f"{split}{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(256, size=(HEIGHT, WIDTH, 3)))
            if (split, n) != ("train", 3):
                label(tmp_path / "data", f"{split}/{split}{n}", f"{n % 2} 0.5 0.5 0.25 0.5\n")
    described(tmp_path / "data")
    return tmp_path / "data"


def label(data: Path, name: str, lines: str) -> Path:
    path = data / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    return path


def described(data: Path, **entries: Any) -> Path:
    path = data / "data.yaml"
    content = {"path": "/content/elsewhere", "train": "images/train", "val": "images/val", "nc": 2} | entries
    path.write_text(yaml.safe_dump({"names": {0: "cat", 1: "dog"}} | content))
    return path


def run(src: Path, out: str = "out", **options: Any) -> DatasetIndex:
    return make("yolo", src.parent / out, **{"src": src, "workers": 1, **options})


def found(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {
        key.partition("-")[2]: {name: bytes(value) for name, value in (members or {}).items()}
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    }


def annotations(members: dict[str, bytes]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(members["json"])["annotations"]
    return listed


def test_splits_and_names_are_those_of_the_yaml(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = run(data)
    assert index.names == ["train-000000.tar", "val-000000.tar"]
    assert index.classes == {"boxes": ["cat", "dog"]}
    assert (data.parent / "out" / "classes.txt").read_text() == "cat\ndog\n"
    samples = found(index)
    assert len(samples) == 6
    assert samples["train1"]["jpg"] == (data / "images" / "train" / "train1.jpg").read_bytes()
    assert json.loads(samples["train1"]["json"]) == {
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": [{"category_id": 1, "category": "dog", "bbox": [15, 5, 10, 10], "area": 100, "iscrowd": 0}],
    }
    assert annotations(samples["train3"]) == []
    told = capsys.readouterr().err
    assert f"{data}: 6 images imported\n" in told
    assert "1: images without a label file, imported without boxes: images/train/train3.jpg\n" in told
    before = {path.name: path.stat().st_mtime_ns for path in (data.parent / "out").iterdir()}
    assert run(data / "data.yaml").digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in (data.parent / "out").iterdir()}
    label(data, "train/train1", "0 0.5 0.5 0.25 0.5\n")
    with pytest.raises(DataError, match="are older than their source"):
        run(data)


def test_lists_of_images_and_of_folders(data: Path) -> None:
    (data / "some.txt").write_text("./images/train/train0.jpg\nimages/val/val1.jpg\n")
    described(data, train=["images/train", "images/val"], val="some.txt", names=["cat", "dog"])
    samples = [key for shard in run(data).shards for _, key, _, _ in shard_samples(shard)]
    assert len(samples) == 8


def test_a_folder_without_a_yaml_needs_names(data: Path) -> None:
    (data / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"classes.txt: no such file"):
        run(data)
    index = run(data, classes="cat,dog")
    assert index.names == ["train-000000.tar", "val-000000.tar"]
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            for path in sorted((data / kind / split).iterdir()):
                path.rename(data / kind / path.name)
            (data / kind / split).rmdir()
    (data / "classes.txt").write_text("cat\ndog\n")
    index = run(data, "flat", val="0.34")
    assert index.counts.tolist() == [4, 2]
    assert annotations(found(index)["val0"])[0]["category"] == "cat"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("0 0.5 0.5 0.25\n", "line 1 is '0 0.5 0.5 0.25', not 'class x y width height'"),
        ("1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.9 0.1 0.9 0.9\n", "line 2 is '0 0.1 0.1 0.9 0.1 0.9 0.9', not 'class x y"),
        ("0 half 0.5 0.25 0.5\n", "line 1 is '0 half 0.5 0.25 0.5', not 'class x y width height'"),
        ("0 20 10 5 5\n", "outside its image"),
        ("0 0.5 0.5 1e-6 0.5\n", "line 1 has a box thinner than 0.001 pixels"),
    ],
)
def test_lines_that_are_no_boxes_cost_their_image(data: Path, lines: str, reason: str) -> None:
    label(data, "train/train0", lines)
    assert run(data).num_samples == 5
    (told,) = (data.parent / "out" / "train-rejected.txt").read_text().splitlines()
    assert told.startswith("images/train/train0.jpg\tin its label file, line")
    assert reason in told


def test_a_class_beyond_the_names_is_an_error(data: Path) -> None:
    label(data, "val/val1", "2 0.5 0.5 0.25 0.5\n")
    with pytest.raises(DataError, match=r"val/val1.txt: line 1 has the class 2, but 2 classes are named, 0 to 1"):
        run(data)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"names": None}, "found no `names` of classes"),
        ({"names": {1: "cat", 2: "dog"}}, r"found the numbers \[1, 2\] in its `names`; number them from 0 up"),
        ({"names": ["cat", "cat"]}, "found 'cat' twice in its `names`"),
        ({"nc": 3}, "found nc 3, but 2 class names"),
        ({"train": None, "val": None}, "found no images"),
        ({"train": "images/none"}, "neither a folder of images nor a text file that lists them"),
    ],
)
def test_a_yaml_that_says_too_little_is_refused(data: Path, entries: dict[str, Any], message: str) -> None:
    described(data, **entries)
    with pytest.raises(DataError, match=message):
        run(data)


def test_what_is_no_yolo_folder_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found neither a folder images/ nor a data.yaml"):
        run(data / "images", classes="cat,dog")
    with pytest.raises(DataError, match="neither a folder nor a YAML file"):
        run(tmp_path / "none")
    with pytest.raises(DataError, match="already has the splits train, val"):
        run(data, val="0.1")
    (data / "data.yaml").write_text("names: [")
    with pytest.raises(DataError, match=r"data.yaml: cannot be read"):
        run(data)
