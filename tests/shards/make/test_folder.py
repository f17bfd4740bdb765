from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import load_index, load_offsets
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample
from pipeline.shards.verify import verify

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
    assert (index.classes, index.counts.tolist()) == (CLASSES, [4, 4, 4, 4, 4, 1])
    files = list(src.rglob("im.*"))
    expected = {
        (hashlib.sha256(path.read_bytes()).hexdigest(), CLASSES.index(path.relative_to(src).parts[0])) for path in files
    }
    found = contents(tmp_path / "out")
    assert found.keys() == expected
    assert len(set(found.values())) == 21
    assert list(verify(str(tmp_path / "out"), workers=1)) == []
    assert "1 files passed over" in capsys.readouterr().err


def test_the_seed_alone_decides_the_order(src: Path, tmp_path: Path) -> None:
    digests = [
        make("folder", tmp_path / f"out{n}", src=src, samples_per_shard=5, seed=seed, workers=1).digest
        for n, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]
    first = load_index(f"{tmp_path}/out0/train-000000.tar")
    assert first.label_range != (0, 0), "a first shard of one class has not been shuffled"


def test_unreadable_files_are_reported(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (src / "cat" / "empty.png").write_bytes(b"")
    (src / "cat" / "text.jpg").write_text("no image")
    (src / "cat" / "dead.png").symlink_to("nowhere")
    index = make("folder", tmp_path / "out", src=src, workers=1)
    assert index.num_samples == 21
    assert "3 unreadable files left out" in capsys.readouterr().err
    assert (tmp_path / "out" / "train-rejected.txt").read_text().splitlines() == [
        "cat/dead.png\tNo such file or directory",
        "cat/empty.png\tis empty",
        "cat/text.jpg\tis no PNG, JPEG or WebP inside",
    ]


def test_a_cut_short_run_goes_on(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = make("folder", tmp_path / "whole", src=src, samples_per_shard=4, workers=1)
    code = f"""
import os, pathlib
from pipeline.shards.make import folder, make
write = folder.ShardTask.__call__
def die_in_the_fourth(self, job):
    if job[0] == 3:
        folder.TarWriter.finish = lambda tar: os._exit(9)
    return write(self, job)
folder.ShardTask.__call__ = die_in_the_fourth
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


def test_a_second_run_keeps_all_and_mends_the_truncated(src: Path, tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match=r"other classes \(yak"):
        make("folder", out, src=src, prefix="test", workers=1)


def test_other_settings_do_not_mix_with_what_is_there(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("folder", out, src=src, workers=1)
    with pytest.raises(DataError, match="made with another seed"):
        make("folder", out, src=src, seed=1, workers=1)
    (src / "ox" / "new.png").write_bytes((src / "cat" / "im.0.png").read_bytes())
    with pytest.raises(DataError, match="made with another num_files and listing_sha256"):
        make("folder", out, src=src, workers=1)
    (out / ".train.plan.json").unlink()
    with pytest.raises(DataError, match="of another origin"):
        make("folder", out, src=src, workers=1)


def test_directories_that_are_no_image_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be listed"):
        make("folder", tmp_path / "out", src=tmp_path / "none")
    src = tmp_path / "src"
    src.mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        make("folder", tmp_path / "out", src=src)
    (src / "train").mkdir()
    with pytest.raises(DataError, match=f"--src {src}/train --prefix train"):
        make("folder", tmp_path / "out", src=src)
    (src / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        make("folder", tmp_path / "out", src=src)
    with pytest.raises(DataError, match="matches no shards"):
        build_index(str(tmp_path / "out"))


@pytest.mark.parametrize("options", [{"samples_per_shard": 0}, {"prefix": "a/b"}, {"prefix": ""}])
def test_options_are_checked(src: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match="take a positive number"):
        make("folder", tmp_path / "out", src=src, **options)


def test_large_images_become_smaller_jpegs_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "cat"
    folder.mkdir(parents=True)
    photo = np.random.default_rng(0).integers(256, size=(300, 500, 3), dtype=np.uint8)
    files = {"large.png": photo, "small.png": photo[:40, :50], "tall.jpg": photo.transpose(1, 0, 2)}
    for name, pixels in files.items():
        cv2.imwrite(str(folder / name), pixels)
    (folder / "broken.jpg").write_bytes((folder / "tall.jpg").read_bytes()[:200])
    index = make("folder", tmp_path / "out", src=tmp_path / "src", max_side=100, quality=80, workers=1)
    found = {}
    for _, key, members, _ in shard_samples(index.shards[0]):
        extension = next(name for name in members if name != "cls")
        found[key.split("-")[1]] = extension, bytes(members[extension])
    shapes = {key: cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2] for key, (_, data) in found.items()}
    assert shapes == {"large": (60, 100), "small": (40, 50), "tall": (100, 60)}
    assert found["large"][0] == "jpg"
    assert found["small"] == ("png", (folder / "small.png").read_bytes())
    assert "broken.jpg" in (tmp_path / "out" / "train-rejected.txt").read_text()
    with pytest.raises(DataError, match="made with another max_side"):
        make("folder", tmp_path / "out", src=tmp_path / "src", max_side=200, quality=80, workers=1)
    with pytest.raises(DataError, match="quality of 1 to 100"):
        make("folder", tmp_path / "out", src=tmp_path / "src", max_side=100, quality=0)
