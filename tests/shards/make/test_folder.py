from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.images.decode import decode, read_header
from pipeline.shards.build import build_index
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.make import ensure_made, make
from pipeline.shards.samples import shard_samples
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample
from pipeline.shards.verify import verify_shards

CLASSES = ["cat", "dög", "ox"]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Three classes, 7 images each, some deeper down, in three formats; a text file and a hidden one beside them."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for i in range(7):
            path = tmp_path / "src" / name / ("deep/er" if i == 3 else "") / f"im.{i}.{('png', 'JPG', 'webp')[label]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (9, 8, 3), np.uint8)
            path.write_bytes(cv2.imencode(path.suffix.lower(), image)[1].tobytes())
    (tmp_path / "src" / "ox" / "notes.txt").write_text("not an image")
    (tmp_path / "src" / "ox" / ".DS_Store").write_bytes(b"")
    return tmp_path / "src"


def write_images(folder: Path, count: int, name: str = "%d.png") -> None:
    """Files `0.png`, `1.png`, ... of an image each, which no folder with a name of another length holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / (name % number)
        path.write_bytes(cv2.imencode(".png", np.full((4, len(folder.name), 3), number, np.uint8))[1].tobytes())


def contents(folder: Path) -> dict[tuple[str, int], str]:
    """{(SHA-256 of the image, label): key} of all samples."""
    found = {}
    for shard in load_index(str(folder)).shards:
        offsets = load_offsets(shard).tolist()
        for start, stop in itertools.pairwise(offsets):
            key, members = read_sample(read_range(shard.url, start, stop))
            label = int(members.pop("cls"))
            [(_, image)] = members.items()
            found[hashlib.sha256(image).hexdigest(), label] = key
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_every_file_once_as_it_is(src: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    index = make("folder", tmp_path / "out", src=src, samples_per_shard=4, workers=workers)
    assert (index.classes["class_id"], index.counts.tolist()) == (CLASSES, [4, 4, 4, 4, 4, 1])
    files = list(src.rglob("im.*"))
    expected = {
        (hashlib.sha256(path.read_bytes()).hexdigest(), CLASSES.index(path.relative_to(src).parts[0])) for path in files
    }
    found = contents(tmp_path / "out")
    assert found.keys() == expected
    assert len(set(found.values())) == 21
    assert list(verify_shards(str(tmp_path / "out"), workers=1)) == []
    table = capsys.readouterr().err
    assert f"{src}:\n  class  imported  unreadable\n  cat           7           0\n" in table
    assert "skipped: 1 file that is not PNG, JPEG or WebP: .txt 1\n" in table
    assert "skipped: 1 system file or folder: .DS_Store 1\n" in table
    assert "subfolders count towards the class above them: cat/deep/er, dög/deep/er, ox/deep/er\n" in table


def test_the_seed_alone_decides_the_order(src: Path, tmp_path: Path) -> None:
    digests = [
        make("folder", tmp_path / f"out{n}", src=src, samples_per_shard=5, seed=seed, workers=1).digest
        for n, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]
    first = load_index(f"{tmp_path}/out0/train-000000.tar")
    assert first.totals["class_id"]["high"] > 0, "a first shard of one class has not been shuffled"


def test_unreadable_files_are_reported(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (src / "cat" / "empty.png").write_bytes(b"")
    (src / "cat" / "text.jpg").write_text("no image")
    (src / "cat" / "dead.png").symlink_to("nowhere")
    index = make("folder", tmp_path / "out", src=src, workers=1)
    assert index.num_samples == 21
    table = capsys.readouterr().err
    assert "  cat           7           3\n" in table
    assert "  total        21           3\n" in table
    assert f"unreadable images are listed in {tmp_path / 'out' / 'train-rejected.txt'}\n" in table
    assert (tmp_path / "out" / "train-rejected.txt").read_text().splitlines() == [
        "cat/dead.png\tNo such file or directory",
        "cat/empty.png\tis empty",
        "cat/text.jpg\tdoes not contain a PNG, JPEG or WebP image",
    ]


def test_a_cut_short_run_goes_on(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = make("folder", tmp_path / "whole", src=src, samples_per_shard=4, workers=1)
    code = f"""
import os, pathlib
from pipeline.shards.make import folder, make
write = folder.FolderShardWriter.__call__
def die_in_the_fourth(self, job):
    if job[0] == 3:
        folder.TarWriter.finish = lambda tar: os._exit(9)
    return write(self, job)
folder.FolderShardWriter.__call__ = die_in_the_fourth
make("folder", {str(out)!r}, src=pathlib.Path({str(src)!r}), samples_per_shard=4, workers=1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(before) == 3
    assert len(list(out.glob(".train-000003.tar.*.tmp"))) == 1
    index = make("folder", out, src=src, samples_per_shard=4, workers=1)
    assert index.digest == whole.digest
    assert not list(out.glob(".*.tmp")), "an unfinished tar of the killed run is left behind"
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}.items()


def test_shards_indexed_by_the_version_before_are_kept(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    digest = make("folder", out, src=src, samples_per_shard=4, workers=1).digest
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    older = json.loads((out / "index.json").read_text()) | {"version": 3, "label_key": "cls"}
    older["classes"] = older["classes"]["class_id"]
    for again in (
        lambda: make("folder", out, src=src, samples_per_shard=4, workers=1),
        lambda: ensure_made("fashion-mnist", str(out)),  # no source is looked for, and nothing written anew
    ):
        (out / "index.json").write_text(json.dumps(older))
        assert again().digest == digest
        assert load_index(str(out)).digest == digest
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}


def test_a_second_run_keeps_all_and_repairs_the_truncated(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    digest = make("folder", out, src=src, samples_per_shard=4, workers=1).digest
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    make("folder", out, src=src, samples_per_shard=4, workers=1)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "train-000002.tar").write_bytes(b"torn")
    assert make("folder", out, src=src, samples_per_shard=4, workers=1).digest == digest


def test_splits_share_a_folder(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for prefix in ("train", "val"):
        make("folder", out, src=src, prefix=prefix, workers=1)
    assert load_index(str(out)).num_samples == 42
    (src / "yak").mkdir()
    (src / "yak" / "1.png").write_bytes((src / "cat" / "im.0.png").read_bytes())
    with pytest.raises(DataError, match=r"other classes \(yak"):
        make("folder", out, src=src, prefix="test", workers=1)


def test_other_settings_do_not_mix_with_what_is_there(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("folder", out, src=src, workers=1)
    with pytest.raises(DataError, match="made with another seed"):
        make("folder", out, src=src, seed=1, workers=1)
    (src / "ox" / "new.png").write_bytes((src / "cat" / "im.0.png").read_bytes())
    with pytest.raises(DataError, match="files were added, removed or changed since; choose another --out"):
        make("folder", out, src=src, workers=1)
    (out / ".train.plan.json").unlink()
    with pytest.raises(DataError, match="from another source"):
        make("folder", out, src=src, workers=1)


def test_directories_that_are_no_image_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be listed"):
        make("folder", tmp_path / "out", src=tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file: not a folder; --src is"):
        make("folder", tmp_path / "out", src=tmp_path / "file")
    src = tmp_path / "src"
    src.mkdir()
    with pytest.raises(DataError, match="found no folders"):
        make("folder", tmp_path / "out", src=src)
    (src / "cat").mkdir()
    with pytest.raises(DataError, match="found no images"):
        make("folder", tmp_path / "out", src=src)
    with pytest.raises(DataError, match="found no shards"):
        build_index(str(tmp_path / "out"))


@pytest.mark.parametrize("folder", ["cat", "ox/deep"])
def test_an_output_among_the_images_is_named_as_the_fault(src: Path, folder: str) -> None:
    with pytest.raises(DataError, match=f"{folder}: is --out, but holds images of --src"):
        make("folder", src / folder, src=src, workers=1)


@pytest.mark.parametrize("options", [{"samples_per_shard": 0}, {"prefix": "a/b"}, {"prefix": ""}])
def test_options_are_checked(src: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match="expected a positive number"):
        make("folder", tmp_path / "out", src=src, **options)


def test_splits_are_made_in_one_go_and_share_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("Train/cat", 3), ("Train/dog", 2), ("Train/ox", 1), ("val/dog", 2)):
        write_images(tmp_path / "src" / name, count)
    write_images(tmp_path / "src" / "test", 2)  # unlabelled
    out = tmp_path / "out"
    index = make("folder", out, src=tmp_path / "src", workers=1)
    assert (index.names, index.classes) == (["train-000000.tar", "val-000000.tar"], {"class_id": ["cat", "dog", "ox"]})
    columns = index.columns["class_id"]
    assert (index.counts.tolist(), columns["low"], columns["high"]) == ([6, 2], [0, 1], [2, 1])
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  class  train  val  unreadable",
        "  cat        3    0           0",
        "  dog        2    2           0",
        "  ox         1    0           0",
        "  total      6    2           0",
        "skipped: 2 images outside class folders: test/0.png, test/1.png",
        f"shards of train: {out}/train-*.tar",
        f"shards of val: {out}/val-*.tar",
    ]
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert make("folder", out, src=tmp_path / "src", workers=1).digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_class_of_which_nothing_can_be_read_is_refused(src: Path, tmp_path: Path) -> None:
    (src / "phone").mkdir()
    for number in range(2):
        (src / "phone" / f"{number}.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    for _ in range(2):  # the second time, nothing is left to be written
        with pytest.raises(
            DataError, match=r"none of the 2 images of class 'phone' can be read; .* listed in .*train-rejected"
        ):
            make("folder", tmp_path / "out", src=src, workers=1)


def test_names_of_any_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "src"
    write_images(src / os.fsdecode(b"caf\xe9"), 2, os.fsdecode(b"bild\xfc%d\n.png"))
    write_images(src / "tea", 2)
    (src / "tea" / os.fsdecode(b"kaputt\xfc\t.png")).write_bytes(b"no image")
    for _ in range(2):
        index = make("folder", tmp_path / "out", src=src, workers=1)
        assert (index.num_samples, index.classes) == (4, {"class_id": [r"caf\xe9", "tea"]})
        table = capsys.readouterr().err
        assert r"  caf\xe9         2           0" in table
        assert "  tea             2           1" in table
    listed = (tmp_path / "out" / "train-rejected.txt").read_text()
    assert listed == "tea/kaputt\\xfc\\x09.png\tdoes not contain a PNG, JPEG or WebP image\n"
    assert list(verify_shards(str(tmp_path / "out"), workers=1)) == []


def test_large_images_become_smaller_jpegs_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "cat"
    folder.mkdir(parents=True)
    photo = np.random.default_rng(0).integers(256, size=(300, 500, 3), dtype=np.uint8)
    files = {"large.png": photo, "small.png": photo[:40, :50], "tall.jpg": photo.transpose(1, 0, 2)}
    for name, pixels in files.items():
        cv2.imwrite(str(folder / name), pixels)
    (folder / "broken.jpg").write_bytes((folder / "tall.jpg").read_bytes()[:200])
    drawing = np.zeros((300, 500, 4), np.uint8)
    drawing[100:200, 100:400, 3] = 255
    (folder.parent / "ink").mkdir()
    cv2.imwrite(str(folder.parent / "ink" / "ink.png"), drawing)
    index = make("folder", tmp_path / "out", src=tmp_path / "src", max_side=100, quality=80, workers=1)
    found = {}
    for _, key, members, _ in shard_samples(index.shards[0]):
        extension = next(name for name in members if name != "cls")
        found[key.split("-")[1]] = extension, bytes(members[extension])
    assert found["ink"][0] == "png"
    image = decode(found["ink"][1], read_header(found.pop("ink")[1]), 3, (9, 90, 200))
    assert image.shape == (60, 100, 3)
    assert (tuple(image[0, 0]), tuple(image[30, 50])) == ((9, 90, 200), (0, 0, 0))
    shapes = {key: cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2] for key, (_, data) in found.items()}
    assert shapes == {"large": (60, 100), "small": (40, 50), "tall": (100, 60)}
    assert found["large"][0] == "jpg"
    assert found["small"] == ("png", (folder / "small.png").read_bytes())
    assert "broken.jpg" in (tmp_path / "out" / "train-rejected.txt").read_text()
    with pytest.raises(DataError, match="made with another max_side"):
        make("folder", tmp_path / "out", src=tmp_path / "src", max_side=200, quality=80, workers=1)
    with pytest.raises(DataError, match="quality of 1 to 100"):
        make("folder", tmp_path / "out", src=tmp_path / "src", max_side=100, quality=0)


def test_images_without_labels(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (src / "loose.png").write_bytes((src / "cat" / "im.0.png").read_bytes())
    out = tmp_path / "out"
    index = make("folder", out, src=src, labels="none", workers=1)
    assert (index.num_samples, index.classes, index.members) == (22, {}, {})
    assert {tuple(members) for _, _, members, _ in shard_samples(index.shards[0])} == {("png",), ("jpg",), ("webp",)}
    assert "  images  imported  unreadable\n  train         22           0\n" in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert make("folder", out, src=src, labels="none", workers=1).digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(DataError, match="made with another labels"):
        make("folder", out, src=src, labels="path", workers=1)
    with pytest.raises(DataError, match="labels 'deep': expected one of top, path, none"):
        make("folder", out, src=src, labels="deep")


def test_a_source_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "1.png").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"none of its images can be read; fix the problems listed in .*train-rejected.txt"
    ):
        make("folder", tmp_path / "out", src=tmp_path / "src", labels="none", workers=1)
