from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(5):
        path = tmp_path / "images" / "00000" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(256, size=(8, 9, 3)))
    return tmp_path / "images"


def run(images: Path, out: str = "out", **options: Any) -> DatasetIndex:
    return make("captions", images.parent / out, **{"images": images, "workers": 1, **options})


def texts(index: DatasetIndex) -> dict[str, str]:
    return {key: members["txt"].decode() for key, members in found(index).items()}


def found(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {
        key.partition("-")[2]: {name: bytes(value) for name, value in (members or {}).items()}
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    }


def table(images: Path, name: str, text: str | bytes) -> Path:
    path = images.parent / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


CSV = 'image,caption\n00000/0.jpg,"a red, ""bright"" shoe"\n00000/1,a bag\n00000/0.jpg,a shoe\n00000/2.jpg,\n'


def test_rows_of_a_table_are_captions(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = run(images, table=table(images, "captions.csv", CSV))
    assert texts(index) == {"0": 'a red, "bright" shoe\na shoe', "1": "a bag"}
    assert found(index)["1"]["jpg"] == (images / "00000" / "1.jpg").read_bytes()
    assert index.members == {"text": ("txt",)}
    told = capsys.readouterr().err
    assert f"{images}: 2 images with captions imported\n" in told
    assert "skipped: 1: rows without image or caption: line 5\n" in told
    assert "skipped: 3: images that the table does not list: 00000/2.jpg, 00000/3.jpg, 00000/4.jpg\n" in told
    before = {path.name: path.stat().st_mtime_ns for path in (images.parent / "out").iterdir()}
    assert run(images, table=images.parent / "captions.csv").digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in (images.parent / "out").iterdir()}
    table(images, "captions.csv", CSV.replace("bag", "bat"))
    with pytest.raises(DataError, match="are older than their source"):
        run(images, table=images.parent / "captions.csv")


def test_json_by_line_and_tabs(images: Path) -> None:
    rows = [
        {"file_name": "00000/0.jpg", "text": ["a shoe", "red\nshoe"]},
        {"file_name": "00000/3.jpg", "text": "a bag"},
    ]
    lines = "\n".join(map(json.dumps, rows))
    columns = {"image_column": "file_name", "caption_column": "text"}
    assert texts(run(images, table=table(images, "t.jsonl", lines), **columns)) == {
        "0": "a shoe\nred shoe",
        "3": "a bag",
    }
    tabs = "file_name\ttext\n00000/0.jpg\ta shoe, red\n"
    assert texts(run(images, "tabs", table=table(images, "t.tsv", tabs), **columns)) == {"0": "a shoe, red"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "t.csv",
            "picture,caption\n00000/0.jpg,a\n",
            r"line 2 has no column 'image', .*picture.*; name it with",
        ),
        ("t.csv", "image,text\n00000/0.jpg,a\n", r"has no column 'caption', .*text.*; name it with --caption-column"),
        (
            "t.csv",
            "image,caption\n00000/0.jpg,caf\xe9\n".encode("latin-1"),
            r"is not UTF-8 \(byte 29\); save it as UTF-8",
        ),
        ("t.csv", "image,caption\n", "found no image with a caption"),
        ("t.jsonl", '{"image": "00000/0.jpg", "caption": "a"}\n[]\n', "line 2 is not a JSON object"),
        ("t.parquet", "", "expected .csv, .tsv, .jsonl, .ndjson"),
        (
            "t.csv",
            "image,caption\na.jpg,a\nb.jpg,b\n",
            r"missing 2 of the 2 images that .*t.csv lists, such as a.jpg",
        ),
    ],
)
def test_tables_that_cannot_be_used_are_refused(images: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(images, table=table(images, name, text))


def test_some_images_may_be_missing(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(images, "t.csv", "image,caption\n00000/0.jpg,a\nnone.jpg,b\n")
    with pytest.raises(DataError, match="missing 1 of the 2 images"):
        run(images, table=path)
    assert texts(run(images, table=path, most_missing=0.5)) == {"0": "a"}
    assert "skipped: 1: images that do not exist: none.jpg\n" in capsys.readouterr().err


def test_what_img2dataset_writes_is_taken_as_it_is(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, text in enumerate((b"a shoe\n", "ein Schuh, gr\xfcn".encode(), "gr\xfcn".encode("latin-1"), b"  \n")):
        (images / "00000" / f"{n}.txt").write_bytes(text)
        (images / "00000" / f"{n}.json").write_text(json.dumps({"caption": "x", "status": "success"}))
    (images / "00000_stats.json").write_text("{}")
    index = run(images)
    samples = found(index)
    assert samples.keys() == {"0", "1"}
    assert samples["0"]["txt"] == b"a shoe\n"
    assert json.loads(samples["1"]["json"])["status"] == "success"
    assert index.members == {"text": ("txt",)}
    assert (images.parent / "out" / "train-rejected.txt").read_text().splitlines() == [
        "00000/2.jpg\tthe member txt is not UTF-8 (byte 2)",
        "00000/3.jpg\tthe caption is empty",
    ]
    assert "skipped: 1: images without a text file next to them: 00000/4.jpg\n" in capsys.readouterr().err


def test_folders_without_texts_or_of_tars_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 5 images has a text file of the same name"):
        run(images)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"found tars, which already are shards; run `minivit shards index"):
        run(tmp_path / "tars")
