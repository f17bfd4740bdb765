from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.shards import group
from pipeline.errors import DataError
from pipeline.shards.index_file import load_index


def png(level: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8), level, np.uint8))[1].tobytes()


def minivit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli.main", "shards", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "a-0.tar", "w") as tar:
        for level, key in enumerate("xyz"):
            for name, data in ((f"{key}.png", png(level)), (f"{key}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return tmp_path


def test_index_then_verify(folder: Path) -> None:
    done = minivit("index", str(folder), "--classes", "cat,dog")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{folder}: 1 shards, 3 samples, 0.0 MB, 2 classes of class_id" in done.stdout
    assert minivit("verify", str(folder)).stdout == f"{folder}: valid\n"


def test_a_folder_named_in_any_bytes_can_be_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    odd = folder / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    (folder / "a-0.tar").rename(odd / "a-0.tar")
    done = minivit("index", str(odd))
    assert (done.returncode, done.stderr) == (0, "")
    assert r"caf\udce9: 1 shards, 3 samples" in done.stdout


def test_verify_says_shard_and_key_and_ends_with_3(folder: Path) -> None:
    path = folder / "a-0.tar"
    path.write_bytes(path.read_bytes().replace(b"y.cls", b"y.cla"))
    data = bytearray(path.read_bytes())
    header = data.index(b"y.cla")
    data[header + 148 : header + 156] = b"%06o\0 " % (
        sum(data[header : header + 148]) + 256 + sum(data[header + 156 : header + 512])
    )
    path.write_bytes(data)
    assert minivit("index", str(folder)).returncode == 0
    done = minivit("verify", str(folder))
    assert done.returncode == 3
    assert done.stdout == f"{path} y: no class_id member (looked for cls; found png, cla)\n"
    assert done.stderr.startswith("error: ")
    assert "1 fault in samples, which runs leave out: correct them" in done.stderr


def test_classes_from_a_file(folder: Path) -> None:
    names = folder / "names.txt"
    names.write_text("cat, black\ndög\n\n")
    result = CliRunner().invoke(group, ["index", str(folder), "--classes", str(names)], catch_exceptions=False)
    assert result.exit_code == 0
    assert load_index(str(folder)).classes == {"class_id": ["cat, black", "dög"]}
    assert isinstance(CliRunner().invoke(group, ["index", str(folder), "--classes", " ,"]).exception, DataError)


def test_make_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "1.png").write_bytes(png(0))
    arguments = ["make", "folder", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "out"), "--prefix", "val"]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert "1 shards, 2 samples" in result.output
    assert load_index(f"{tmp_path}/out/val-000000.tar").classes == {"class_id": ["cat", "dog"]}


def test_every_option_of_a_maker_is_an_option_of_its_command() -> None:
    text = CliRunner().invoke(group, ["make", "folder", "--help"]).output
    assert all(
        option in text for option in ("--out", "--src", "--samples-per-shard", "--prefix", "--seed", "--workers")
    )
    assert "Raises" not in text
    assert "--src" in CliRunner().invoke(group, ["make", "fashion-mnist", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["make", "nothing", "--out", "x"],
            "allowed: captions, coco, depth, fashion-items, fashion-mnist, fashion-mnist-few, fashion-pairs, "
            "fashion-scenes, folder",
        ),
        (["index", "pipe:cat x"], "refused"),
        (["index", "none/*.tar"], "found no shards"),
        (["verify", "none"], "found no shards"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = minivit(*arguments)
    assert done.returncode == 3
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_index_counts_what_lacks_an_image_or_label(folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        with tarfile.open(folder / f"b-{number}.tar", "w") as tar:
            for key in range(number + 1):
                tar.addfile(tarfile.TarInfo(f"{key}.cls"))
    done = minivit("index", str(folder))
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "28 of 31 samples cannot be used: 28 without image (png;jpg;jpeg;webp), 28 whose class_id (cls) cannot be read",
        *(
            f"  b-{number}.tar: {number + 1} of {number + 1} samples cannot be used: {number + 1} without image "
            f"(png;jpg;jpeg;webp), {number + 1} whose class_id (cls) cannot be read"
            for number in (6, 5, 4, 3, 2)
        ),
        "  and 2 more shards",
        f"  `minivit shards verify '{folder}'` lists them",
    ]


def test_index_of_samples_with_other_members_names_these_once(folder: Path) -> None:
    with tarfile.open(folder / "a-0.tar", "w") as tar:
        for name in ("1.left", "1.right", "1.y"):
            tar.addfile(tarfile.TarInfo(name))
    lines = minivit("index", str(folder)).stdout.splitlines()
    assert lines[1:] == [
        "1 of 1 samples cannot be used: 1 without image (png;jpg;jpeg;webp)",
        "  the samples have the members left, right, y; choose which to read with --image-key and --target KIND=MEMBER",
        f"  `minivit shards verify '{folder}'` lists them",
    ]


def test_verify_tells_doubles_from_damage(folder: Path) -> None:
    (folder / "b-0.tar").write_bytes((folder / "a-0.tar").read_bytes())
    minivit("index", str(folder))
    done = minivit("verify", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{folder}: valid, but 3 duplicates already in the source")
    both = minivit("verify", f"{folder}/a-0.tar", f"{folder}/b-0.tar")
    assert both.returncode == 3
    assert "its image is also in" in both.stdout
    assert "3 overlaps between data sets" in both.stderr


def test_verify_prints_the_first_faults_of_each_kind(folder: Path) -> None:
    with tarfile.open(folder / "b-0.tar", "w") as tar:
        for number in range(25):
            tar.addfile(tarfile.TarInfo(f"{number}.note"))
    with tarfile.open(folder / "c-0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("c.cls"))
    minivit("index", str(folder))
    (folder / "c-0.tar").write_bytes(b"torn")
    runner = CliRunner()
    done = runner.invoke(group, ["verify", str(folder), "--workers", "1"])
    lines = done.stdout.splitlines()
    assert len(lines) == 20 + 1 + 1
    assert lines[-2].startswith(f"{folder}/c-0.tar: ")
    assert lines[-1] == "... and 30 more faults in samples (--all prints them)"
    assert "1 fault in whole shards" in str(done.exception)
    assert "50 faults in samples" in str(done.exception)
    everything = runner.invoke(group, ["verify", str(folder), "--workers", "1", "--all"])
    assert len(everything.stdout.splitlines()) == 51


def test_a_tar_in_pieces_is_regrouped_as_the_index_advises(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x.png", "y.png", "x.cls", "y.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    refused = minivit("index", str(tmp_path))
    assert refused.returncode == 3
    command = re.search("`minivit shards ([^`]*)`", refused.stderr)
    assert command is not None
    done = minivit(*shlex.split(command[1].replace("FOLDER", str(tmp_path / "out"))))
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [f"{tmp_path}/out: 1 shards, 2 samples, 0.0 MB, digest {load_index(str(tmp_path / 'out')).digest}"],
    )


def test_the_tools_read_the_members_that_they_are_told_to(folder: Path) -> None:
    image = ["--image-key", "jpg;png", "--target", "class_id=note"]
    assert "3 without class_id (note)" in minivit("index", str(folder), *image).stdout
    assert minivit("verify", str(folder), "--target", "class_id=cls").returncode == 0
    assert minivit("verify", str(folder)).returncode == 3
    runner = CliRunner()
    stats = runner.invoke(group, ["stats", str(folder), "--image-key", "tif", "--json"], catch_exceptions=False)
    assert json.loads(stats.output)["without_image"] == 3
    out = str(folder / "sheet.png")
    runner.invoke(group, ["preview", str(folder), "--target", "class_id=cls", "--out", out], catch_exceptions=False)
    assert Path(out).is_file()
