from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import load_index, load_offsets
from pipeline.shards.scan import scan_shard
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample


def test_indexes_what_webdataset_wrote_and_agrees_with_its_reader(tmp_path: Path, samples: Callable) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key, members in samples(6):
            writer.write({"__key__": f"deep/{key}", **members})
    index = build_index(str(tmp_path))
    offsets = load_offsets(index.shards[0]).tolist()
    ours = [read_sample(read_range(index.shards[0].url, *cut)) for cut in itertools.pairwise(offsets)]
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    assert ours == [
        (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")})
        for sample in theirs
    ]


def test_in_parallel_as_alone(folder: Path) -> None:
    alone = build_index(str(folder), workers=1)
    for path in folder.glob("*.idx"):
        path.unlink()
    assert build_index(str(folder), workers=2).digest == alone.digest


def test_leaves_what_is_valid_and_reads_what_changed(folder: Path, samples: Callable, write_tar: Callable) -> None:
    build_index(str(folder), workers=1)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_index(str(folder), workers=1)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    changed = write_tar(folder / "train-000002.tar", samples(4))
    index = build_index(str(folder), workers=1)
    assert index.counts.tolist() == [5, 0, 4]
    written = {path.name for path in folder.iterdir() if before.get(path.name) != path.stat().st_mtime_ns}
    assert written == {changed.name, "train-000002.tar.idx", "index.json"}
    assert load_index(str(folder)).digest == index.digest


def test_a_tar_rewritten_with_the_same_size_is_read_again(folder: Path, samples: Callable, write_tar: Callable) -> None:
    build_index(str(folder), workers=1)
    path = folder / "train-000000.tar"
    size = path.stat().st_size
    write_tar(path, [(key, {**members, "cls": b"7"}) for key, members in samples(5)])
    assert path.stat().st_size == size
    newer = (folder / "train-000000.tar.idx").stat().st_mtime_ns + 1
    os.utime(path, ns=(newer, newer))
    build_index(str(folder), workers=1)
    assert load_index(f"{folder}/train-000000.tar").label_range == (7, 7)


def test_a_second_pattern_joins_the_same_index(folder: Path) -> None:
    build_index(f"{folder}/train-000000.tar", workers=1)
    part = build_index(f"{folder}/train-{{000001..000002}}.tar", workers=1)
    assert part.names == ["train-000001.tar", "train-000002.tar"]
    assert len(load_index(str(folder)).shards) == 3
    (folder / "train-000000.tar").unlink()
    build_index(f"{folder}/train-000001.tar", workers=1)
    assert load_index(str(folder)).names == ["train-000001.tar", "train-000002.tar"]


def test_classes_and_label_key_stay_until_given_anew(folder: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    assert build_index(str(folder), classes=names, workers=1).classes == names
    assert build_index(str(folder), workers=1).classes == names
    assert build_index(str(folder), label_key="txt", workers=1).label_range is None
    assert build_index(str(folder), workers=1).keys.label == "txt"


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["a", "b"], r"train-000000.tar: holds label 4, but 2 classes allow 0 to 1"), (["a"] * 10, "'a' is given twice")],
)
def test_classes_must_hold_the_labels(folder: Path, classes: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_index(str(folder), classes=classes, workers=1)
    assert not (folder / "index.json").exists()


def test_a_torn_tar_is_named_and_nothing_is_half_done(folder: Path) -> None:
    path = folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"train-000002.tar: ends at byte 1500"):
        build_index(str(folder), workers=1)
    assert not (folder / "index.json").exists()


def test_nothing_to_index(tmp_path: Path, folder: Path) -> None:
    for pattern in ("none-*.tar", "train-{000000..000009}.tar"):
        with pytest.raises(DataError, match=r"matches no shards|names train-000003.tar"):
            build_index(f"{folder}/{pattern}")


def test_repeated_members_do_not_hide_each_other(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [("k", {"cls": b"1"}), ("k", {"cls": b"2"}), ("README", {}), ("l", {"cls": b"x"})])
    scan = scan_shard(str(tmp_path / "a.tar"))
    assert [(sample.key, sample.label) for sample in scan.samples] == [("k", 1), ("k", 2), ("l", None)]
    assert scan.record("a.tar").label_max == 2


def test_the_lock_lets_one_in_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []

    def second() -> None:
        with folder_lock(str(tmp_path), "make"):
            order.append("second")

    thread = threading.Thread(target=second)
    with folder_lock(str(tmp_path), "make"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting" in capfd.readouterr().err


def test_a_sidecar_that_cannot_be_put_in_place(folder: Path) -> None:
    (folder / "train-000000.tar.idx").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        build_index(str(folder), workers=1)
