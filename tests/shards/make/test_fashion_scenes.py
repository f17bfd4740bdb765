from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_file import load_index
from pipeline.shards.make import _scenes_shards, ensure_made, make
from pipeline.shards.make._fashion_mnist_files import DEBIAN_FOLDER
from pipeline.shards.make.fashion_mnist import CLASSES
from pipeline.shards.samples import shard_samples

FEW = {"train": 7, "val": 2, "test": 2, "samples_per_shard": 3, "min_side": 64, "max_side": 72, "workers": 1}


def samples(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {
        key: {extension: bytes(data) for extension, data in members.items()}
        for shard in index.shards
        for _, key, members, _ in shard_samples(shard)
    }


def test_members_and_names(items_src: Path, tmp_path: Path) -> None:
    index = make("fashion-scenes", tmp_path, src=items_src, **FEW)
    assert dict(zip(index.names, index.counts.tolist(), strict=True)) == {
        "test-000000.tar": 2,
        "train-000000.tar": 3,
        "train-000001.tar": 3,
        "train-000002.tar": 1,
        "val-000000.tar": 2,
    }
    found = samples(index)
    assert len(found) == 11
    assert all(set(members) == {"jpg", "seg.png", "depth.png", "json", "txt"} for members in found.values())
    assert len({members["jpg"] for members in found.values()}) == 11
    classes, groups = ((tmp_path / name).read_text().splitlines() for name in ("classes.txt", "groups.txt"))
    assert classes == ["background", *CLASSES]
    by_group = {group: {c for c, g in zip(classes, groups, strict=True) if g == group} for group in groups}
    assert by_group == {
        "background": {"background"},
        "top": {"T-shirt/top", "Pullover", "Coat", "Shirt"},
        "trousers": {"Trouser"},
        "dress": {"Dress"},
        "footwear": {"Sandal", "Sneaker", "Ankle boot"},
        "bag": {"Bag"},
    }


def test_seed_and_number_alone_decide_a_scene(items_src: Path, tmp_path: Path) -> None:
    changes = {"one": {}, "two": {"workers": 2}, "long": {"samples_per_shard": 100}, "more": {"train": 9}}
    made = {
        name: make("fashion-scenes", tmp_path / name, src=items_src, **FEW | change) for name, change in changes.items()
    }
    assert made["one"].digest == made["two"].digest
    assert samples(made["one"]) == samples(made["long"])
    assert samples(made["one"]).items() < samples(made["more"]).items()
    other = samples(make("fashion-scenes", tmp_path / "other", src=items_src, **FEW | {"seed": 1}))
    assert not {one["jpg"] for one in other.values()} & {one["jpg"] for one in samples(made["one"]).values()}


def test_a_second_run_touches_nothing_says_so_and_needs_no_source(
    items_src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = make("fashion-scenes", tmp_path, src=items_src, **FEW).digest
    assert "nothing to draw" not in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert make("fashion-scenes", tmp_path, src=tmp_path / "nowhere", **FEW).digest == digest
    assert "all 5 shards exist; nothing to draw" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "val-000000.tar").unlink()
    assert make("fashion-scenes", tmp_path, src=items_src, **FEW).digest == digest
    assert before["train-000001.tar"] == (tmp_path / "train-000001.tar").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"val": 3}, "scenes"),
        ({"max_side": 80}, "max-side"),
        ({"samples_per_shard": 2}, "samples"),
    ],
)
def test_other_settings_are_refused(items_src: Path, tmp_path: Path, change: dict, named: str) -> None:
    make("fashion-scenes", tmp_path, src=items_src, **FEW)
    with pytest.raises(DataError, match=rf"were made with another {named}.*; choose another --out, or delete"):
        make("fashion-scenes", tmp_path, src=items_src, **FEW | change)


def test_scenes_of_an_earlier_generator_are_refused(
    items_src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("fashion-scenes", tmp_path, src=items_src, **FEW)
    monkeypatch.setattr(_scenes_shards, "GENERATOR", _scenes_shards.GENERATOR + 1)
    with pytest.raises(DataError, match="were made with another generator"):
        make("fashion-scenes", tmp_path, src=items_src, **FEW)


@pytest.mark.parametrize(
    "change",
    [
        {"train": -1},
        {"train": 0, "val": 0, "test": 0},
        {"samples_per_shard": 0},
        {"seed": -1},
        {"min_side": 63},
        {"max_side": 63},
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(DataError, match="expected"):
        make("fashion-scenes", tmp_path, **FEW | change)
    assert not list(tmp_path.glob("*.tar"))


def test_one_split_alone(items_src: Path, tmp_path: Path) -> None:
    index = make("fashion-scenes", tmp_path, src=items_src, **FEW | {"train": 0, "test": 0})
    assert index.names == ["val-000000.tar"]


def test_a_source_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no Fashion-MNIST files"):
        make("fashion-scenes", tmp_path / "out", src=tmp_path, **FEW)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one(tmp_path: Path) -> None:
    made = make("fashion-scenes", tmp_path, **FEW)
    assert made.digest == load_index(str(tmp_path)).digest
    assert ensure_made("fashion-scenes", f"{tmp_path}/val-*.tar").num_samples == 2
