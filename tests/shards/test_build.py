from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.shards import members
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import load_offsets
from pipeline.shards.index_file import load_index
from pipeline.shards.members import Keys
from pipeline.shards.regroup import regroup
from pipeline.shards.scan import scan_shard
from pipeline.shards.store import read_range
from pipeline.shards.tar import read_sample
from pipeline.shards.verify import verify_shards
from pipeline.shards.write import TarWriter
from pipeline.targets import tool_targets

Samples = Sequence[tuple[str, Mapping[str, bytes]]]


def by_webdataset(path: Path, samples: Samples) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(path)) as writer:
        for key, parts in samples:
            writer.write({"__key__": key, **parts})


def by_python(path: Path, samples: Samples, form: int) -> None:
    with tarfile.open(path, "w", format=form) as file:
        for key, parts in samples:
            for extension, data in parts.items():
                entry = tarfile.TarInfo(f"{key}.{extension}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))


def by_command(path: Path, samples: Samples, *command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    folder, names = path.parent / "files", []
    for key, parts in samples:
        for extension, data in parts.items():
            names.append(f"{key}.{extension}")
            (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / names[-1]).write_bytes(data)
    subprocess.run([*command, "-cf", path, "-C", folder, *names], check=True)


def by_ours(path: Path, samples: Samples) -> None:
    writer = TarWriter(path)
    for key, parts in samples:
        writer.write(key, parts)
    writer.finish()


WRITERS: dict[str, Callable[[Path, Samples], None]] = {
    "ours": by_ours,
    "webdataset": by_webdataset,
    "python, ustar": partial(by_python, form=tarfile.USTAR_FORMAT),
    "python, gnu": partial(by_python, form=tarfile.GNU_FORMAT),
    "python, pax": partial(by_python, form=tarfile.PAX_FORMAT),
    "GNU tar, gnu": lambda path, samples: by_command(path, samples, "tar", "--format=gnu"),
    "GNU tar, posix": lambda path, samples: by_command(path, samples, "tar", "--format=posix"),
    "GNU tar, ustar": lambda path, samples: by_command(path, samples, "tar", "--format=ustar"),
    "bsdtar": lambda path, samples: by_command(path, samples, "bsdtar"),
    "bsdtar, ustar": lambda path, samples: by_command(path, samples, "bsdtar", "--format=ustar"),
    "bsdtar, gnutar": lambda path, samples: by_command(path, samples, "bsdtar", "--format=gnutar"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_tars_of_all_writers_hold_what_webdataset_reads(writer: str, tmp_path: Path, samples: Callable) -> None:
    """Names that fill the header's field, have no room in it, or go beyond ASCII, too."""
    webdataset = pytest.importorskip("webdataset")
    folders = ["deep", "e" * 88, "n" * 130, "größe"]
    if "ustar" not in writer:
        folders.append(f"{'long' * 20}/{'name' * 24}")
    wanted = [
        (f"{folder}/{number}-{key}", parts) for folder in folders for number, (key, parts) in enumerate(samples(3))
    ]
    WRITERS[writer](tmp_path / "a.tar", wanted)
    index = build_index(str(tmp_path / "a.tar"), workers=1)
    offsets = load_offsets(index.shards[0]).tolist()
    ours = [read_sample(read_range(index.shards[0].url, *cut)) for cut in itertools.pairwise(offsets)]
    theirs = [
        (sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")})
        for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    ]
    assert ours == theirs == wanted


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_backups_of_gnu_tar_are_read_as_other_tars(form: str, tmp_path: Path, samples: Callable) -> None:
    """Their headers have times where a prefix of the name may be (Python takes them for one), and label the volume."""
    backup = "tar", "--incremental", "--label=train.1", f"--format={form}"
    by_command(tmp_path / "a.tar", samples(3), *backup)
    [shard] = build_index(str(tmp_path / "a.tar"), workers=1).shards
    offsets = load_offsets(shard).tolist()
    assert sorted(read_sample(read_range(shard.url, *cut)) for cut in itertools.pairwise(offsets)) == samples(3)


def test_shards_of_webdatasets_own_writer(tmp_path: Path, samples: Callable) -> None:
    """Several shards under its names, which it ends as soon as one is full, and with members sorted by extension."""
    webdataset = pytest.importorskip("webdataset")
    wanted = samples(11)
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for key, parts in wanted:
            writer.write({"__key__": key, **parts})
    index = build_index(str(tmp_path / "train-{000000..000002}.tar"), workers=1)
    assert index.counts.tolist() == [4, 4, 3]
    found = [
        read_sample(read_range(shard.url, *cut))
        for shard in index.shards
        for cut in itertools.pairwise(load_offsets(shard).tolist())
    ]
    assert found == wanted
    assert list(found[0][1]) == ["cls", "note", "png"]
    reader = webdataset.WebDataset([shard.url for shard in index.shards], shardshuffle=False)
    assert [(one["__key__"], {name: one[name] for name in ("cls", "note", "png")}) for one in reader] == wanted


def test_webdatasets_writer_differs_from_ours_only_in_order_and_padding(tmp_path: Path, samples: Callable) -> None:
    """Without its times and owners: the headers of both are those of Python's tarfile."""
    webdataset = pytest.importorskip("webdataset")
    alike = {"mtime": 0, "user": "", "group": "", "mode": 0o644, "encoder": False}
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), **alike) as writer:
        for key, parts in samples(5):
            writer.write({"__key__": f"größe/{'n' * 120}/{key}", **parts})
    by_ours(
        tmp_path / "ours.tar",
        [(f"größe/{'n' * 120}/{key}", dict(sorted(parts.items()))) for key, parts in samples(5)],
    )
    theirs, ours = ((tmp_path / f"{name}.tar").read_bytes() for name in ("theirs", "ours"))
    assert theirs == ours + bytes(-len(ours) % tarfile.RECORDSIZE)


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
    found = load_index(f"{folder}/train-000000.tar").totals["class_id"]
    assert (found["low"], found["high"]) == (7, 7)


def test_a_second_pattern_joins_the_same_index(folder: Path) -> None:
    build_index(f"{folder}/train-000000.tar", workers=1)
    part = build_index(f"{folder}/train-{{000001..000002}}.tar", workers=1)
    assert part.names == ["train-000001.tar", "train-000002.tar"]
    assert len(load_index(str(folder)).shards) == 3
    (folder / "train-000000.tar").unlink()
    build_index(f"{folder}/train-000001.tar", workers=1)
    assert load_index(str(folder)).names == ["train-000001.tar", "train-000002.tar"]


def test_classes_and_members_stay_until_given_anew(folder: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    assert build_index(str(folder), classes=names, workers=1).classes == {"class_id": names}
    assert build_index(str(folder), workers=1).classes == {"class_id": names}
    found = build_index(str(folder), targets={"class_id": ("note",)}, workers=1).totals["class_id"]
    assert (found["low"], found["bad"], found["unusable"]) == (None, 8, 8)
    again = build_index(str(folder), targets={"mask": ("png",)}, classes={"mask": ["wall"]}, workers=1)
    assert again.members == {"class_id": ("note",), "mask": ("png",)}
    assert again.classes == {"class_id": names, "mask": ["wall"]}
    assert again.totals["mask"] == {"missing": 0, "bad": 0, "unusable": 0}


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["a", "b"], r"train-000000.tar: found label 4, but 2 classes allow 0 to 1"), (["a"] * 10, "'a' appears twice")],
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
        with pytest.raises(DataError, match=r"found no shards|lacks train-000003.tar"):
            build_index(f"{folder}/{pattern}")


def test_repeated_members_do_not_hide_each_other(tmp_path: Path, write_tar: Callable) -> None:
    write_tar(tmp_path / "a.tar", [("k", {"cls": b"1"}), ("k", {"cls": b"2"}), ("README", {}), ("l", {"cls": b"x"})])
    scan = scan_shard(str(tmp_path / "a.tar"), targets=tool_targets({"class_id": ("cls",)}))
    assert [(one.key, one.content["cls"]) for one in scan.samples] == [("k", b"1"), ("k", b"2"), ("l", b"x")]
    found = scan.record("a.tar").targets["class_id"]
    assert (found["low"], found["high"], found["bad"], found["unusable"]) == (1, 2, 1, 3)


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


def test_a_tar_whose_samples_lie_apart_is_refused_with_a_cure_that_works(tmp_path: Path, write_tar: Callable) -> None:
    images, labels = ([(f"{k}", {extension: b"1"}) for k in range(9)] for extension in ("png", "cls"))
    write_tar(tmp_path / "a.tar", [*images, *labels])
    with pytest.raises(DataError, match=r"a.tar: the members of 9 samples are scattered.*`minivit shards regroup"):
        build_index(str(tmp_path), workers=1)
    assert not (tmp_path / "index.json").exists()
    subprocess.run("mkdir x && tar -xf a.tar -C x && tar --sort=name -cf a.tar -C x .", shell=True, cwd=tmp_path)
    index = build_index(str(tmp_path), workers=1)
    assert (index.num_samples, index.totals["class_id"]["unusable"]) == (9, 0)


def test_links_instead_of_samples_are_refused_with_cures_that_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As GNU tar writes the second of two names of a file."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a.png", "a.cls"):
        (folder / name).write_bytes(b"1")
        os.link(folder / name, folder / name.replace("a", "b"))
    names = [path.name for path in sorted(folder.iterdir())]
    write = ["tar", "-cf", tmp_path / "a.tar", "-C", folder]
    subprocess.run([*write, *names], check=True)
    with pytest.raises(DataError, match=r"a.tar: 2 members of samples are links.* --hard-dereference, or run `minivit"):
        build_index(str(tmp_path), workers=1)
    assert regroup(str(tmp_path), tmp_path / "out", workers=1).num_samples == 1
    assert "a.tar: left out 2 members of samples that are links" in capfd.readouterr().err
    subprocess.run([*write, "--dereference", "--hard-dereference", *names], check=True)
    assert build_index(str(tmp_path), workers=1).num_samples == 2


def test_several_tars_in_one_file_are_refused(tmp_path: Path, samples: Callable, write_tar: Callable) -> None:
    data = write_tar(tmp_path / "a.tar", samples(3)).read_bytes()
    (tmp_path / "a.tar").write_bytes(data + data)
    with pytest.raises(DataError, match=rf"a.tar: {len(data):,} bytes follow its end-of-archive.*shards regroup"):
        build_index(str(tmp_path), workers=1)


def test_other_keys_are_read_from_headers_and_the_hash_stays(folder: Path) -> None:
    before = build_index(str(folder), workers=1)
    sidecar = (folder / "train-000000.tar.idx").stat().st_mtime_ns
    part, png = f"{folder}/train-000000.tar", {"class_id": ("png",)}
    other = build_index(part, image_key="note", targets=png, workers=1)
    assert (other.keys, other.members, sum(other.without_image.values())) == (Keys(("note",)), png, 5)
    assert other.totals["class_id"] == {"missing": 0, "bad": 5, "unusable": 5, "low": None, "high": None}
    assert load_index(str(folder)).totals["class_id"]["unusable"] == 8
    assert load_index(str(folder)).digest == before.digest
    assert (folder / "train-000000.tar.idx").stat().st_mtime_ns == sidecar
    assert build_index(str(folder), workers=1).keys == other.keys


def test_samples_that_an_older_version_cut_otherwise_get_a_new_sidecar(
    tmp_path: Path, samples: Callable, write_tar: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took what a Mac leaves in a folder of a tar for samples."""
    write_tar(tmp_path / "a.tar", [("d/__MACOSX/x", {"png": b"?"}), *samples(3)])
    with monkeypatch.context() as older:
        older.setattr(members, "META_NAME", re.compile("__[^/]*__($|/)"))
        assert build_index(str(tmp_path), workers=1).num_samples == 4
    document = json.loads((tmp_path / "index.json").read_text())
    older = {"version": 3, "label_key": "cls", "classes": None}
    (tmp_path / "index.json").write_text(json.dumps(document | older))
    build_index(str(tmp_path), workers=1)
    [shard] = load_index(str(tmp_path)).shards
    assert (shard.samples, len(load_offsets(shard))) == (3, 4)
    assert list(verify_shards(str(tmp_path), decode_images=False, workers=1)) == []


@pytest.mark.parametrize(("ending", "tool"), [("tar.gz", "gzip"), ("tgz", "gzip"), ("tar.xz", "xz"), ("tbz2", "bzip2")])
def test_compressed_tars_are_named_with_the_command_that_unpacks_them(
    tmp_path: Path, samples: Callable, write_tar: Callable, ending: str, tool: str
) -> None:
    tmp_path = tmp_path / "my shards"
    tmp_path.mkdir()
    path = write_tar(tmp_path / "a.tar", samples(3))
    packed = tmp_path / f"a.{ending}"
    packed.write_bytes(subprocess.run([tool, "-c", path], check=True, capture_output=True).stdout)
    path.unlink()
    for pattern in (f"{tmp_path}", f"{packed}", f"{tmp_path}/*.{ending}", f"{tmp_path}/a.tar"):
        for reads in (build_index, load_index):
            with pytest.raises(DataError, match=rf"a\.{ending}: a compressed tar.*run `(.*)`") as refused:
                reads(pattern)
    command = re.search("run `(.*)`", str(refused.value))
    subprocess.run(command[1], shell=True, check=True)
    assert build_index(str(tmp_path), workers=1).num_samples == 3


def test_compressed_tars_among_plain_ones_are_mentioned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train-000003.tar.zst").write_bytes(b"")
    (folder / "train-000000.tar.gz").write_bytes(b"")  # beside its plain tar
    assert len(build_index(str(folder), workers=1).names) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "train-000003.tar.zst: a compressed tar, but" in line


def test_a_compressed_tar_under_a_plain_name(tmp_path: Path, samples: Callable, write_tar: Callable) -> None:
    path = write_tar(tmp_path / "a.tar", samples(3))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(
        DataError, match=r"a.tar: is compressed \(gzip\).* uncompressed tars; unpack it, then index again$"
    ):
        build_index(str(tmp_path), workers=1)


def test_an_index_that_cannot_be_read_is_replaced_and_said_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "index.json").write_text("{")
    assert build_index(str(folder), workers=1).num_samples == 8
    assert "rebuilding its unreadable index" in capsys.readouterr().err


def test_an_interrupted_index_goes_on(folder: Path) -> None:
    whole = build_index(str(folder), workers=1)
    for path in [folder / "index.json", *folder.glob("*.idx")]:
        path.unlink()
    read: list[str] = []

    def interrupted(task: Callable, jobs: Sequence, **_: object) -> Iterator:
        for job in jobs:
            if len(read) == 2:
                raise KeyboardInterrupt
            read.append(job.name)
            yield task(job)

    with pytest.raises(KeyboardInterrupt):
        build_index(str(folder), mapper=interrupted)
    assert load_index(str(folder / "train-{000000..000001}.tar")).num_samples == 5
    with pytest.raises(DataError, match=r"train-000002\.tar: missing from .*index\.json"):
        load_index(str(folder))
    assert build_index(str(folder), mapper=lambda task, jobs, **_: read_all(read, task, jobs)).digest == whole.digest
    assert read == [f"train-{number:06d}.tar" for number in range(3)]


def read_all(read: list[str], task: Callable, jobs: Sequence) -> Iterator:
    for job in jobs:
        read.append(job.name)
        yield task(job)


def test_a_killed_index_has_lost_a_minute_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr("pipeline.shards.build.KEEP_EVERY_S", -1.0)
    monkeypatch.setattr("pipeline.shards.build.write_index", lambda index: kept.append(len(index.names)))
    build_index(str(folder), workers=1)
    assert kept == [1, 2, 3, 3]


def test_the_offsets_of_megatron_energon_are_not_replaced(folder: Path) -> None:
    theirs = struct.pack("<4Q", 0, 2048, 4096, 6144)
    (folder / "train-000002.tar.idx").write_bytes(theirs)
    with pytest.raises(DataError, match=r"train-000002\.tar\.idx: found Megatron-Energon's offsets"):
        build_index(str(folder), workers=1)
    assert (folder / "train-000002.tar.idx").read_bytes() == theirs
