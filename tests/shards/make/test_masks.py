from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.images.class_map import decode_class_map
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.samples import shard_samples

NAMES = "sky,grass,cow"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Ten photographs and their class maps: the even ones palette PNGs as VOC's, the others grey."""
    rng = np.random.default_rng(0)
    for number in range(10):
        size = 6 + number, 9
        write(tmp_path / "images" / f"{number}.jpg", rng.integers(256, size=(*size, 3)))
        ids = rng.integers(3, size=size).astype(np.uint8)
        ids[0, 0] = 255
        path = tmp_path / "masks" / f"{number}.png"
        write(path, ids)
        if number % 2 == 0:
            image = Image.fromarray(ids)
            image.putpalette(rng.bytes(768))
            image.save(path)
    return tmp_path


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8))


def run(folder: Path, out: str = "out", **options: object) -> DatasetIndex:
    paths = {"images": folder / "images", "masks": folder / "masks"}
    return make("masks", folder / out, **{**paths, "classes": NAMES, "workers": 1, **options})


def members(index: DatasetIndex, prefix: str = "train") -> dict[str, dict[str, bytes]]:
    """By the name of the image file."""
    found = {}
    for shard in (shard for shard in index.shards if shard.url.rpartition("/")[2].startswith(prefix)):
        for _, key, sample, _ in shard_samples(shard):
            found[key.split("-")[1]] = {name: bytes(data) for name, data in sample.items()}
    return found


def test_files_stay_as_they_are(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pairs / "images" / "alone.jpg").write_bytes((pairs / "images" / "1.jpg").read_bytes())
    index = run(pairs, samples_per_shard=4)
    assert index.counts.tolist() == [4, 4, 2]
    found = members(index)
    assert found.keys() == {str(number) for number in range(10)}
    for number, sample in found.items():
        assert sample["jpg"] == (pairs / "images" / f"{number}.jpg").read_bytes()
        assert sample["seg.png"] == (pairs / "masks" / f"{number}.png").read_bytes()
    told = capsys.readouterr().err
    assert f"{pairs / 'images'}: 10 images with masks imported\n" in told
    assert "skipped: 1: images without a mask: alone.jpg\n" in told
    before = {path.name: path.stat().st_mtime_ns for path in (pairs / "out").iterdir()}
    assert run(pairs, samples_per_shard=4).digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in (pairs / "out").iterdir()}
    with pytest.raises(DataError, match="made with another remap"):
        run(pairs, samples_per_shard=4, remap="0-2=0")


def test_ids_are_remapped_in_16_bits_where_need_be(pairs: Path) -> None:
    found = members(run(pairs, remap="0=2,1=ignore,2=0"))
    for number, sample in found.items():
        before = decode_class_map((pairs / "masks" / f"{number}.png").read_bytes())
        table = np.full(256, 255)
        table[[0, 2]] = 2, 0
        np.testing.assert_array_equal(decode_class_map(sample["seg.png"]), table[before])
    for number in range(10):
        ids = np.full((6 + number, 9), 256 + number if number else 500)
        write(pairs / "masks" / f"{number}.png", ids)
    many = ",".join(f"class {number}" for number in range(300))
    found = members(run(pairs, "many", classes=many, ignore=500))
    assert decode_class_map(found["0"]["seg.png"]).tolist() == [[65535] * 9] * 6
    assert found["3"]["seg.png"] == (pairs / "masks" / "3.png").read_bytes()


def test_an_edited_map_is_another_map(pairs: Path) -> None:
    path = pairs / "map.txt"
    path.write_text("0=0\n1=1\n2=1\n")
    index = run(pairs, classes="sky,land", remap=str(path))
    assert run(pairs, classes="sky,land", remap=str(path)).digest == index.digest
    path.write_text("0=0\n1=1\n2=ignore\n")
    with pytest.raises(DataError, match="made with another remap"):
        run(pairs, classes="sky,land", remap=str(path))


def test_what_cannot_be_used_is_left_out_and_named(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(pairs / "masks" / "0.png", np.zeros((9, 6)))
    write(pairs / "masks" / "1.png", np.zeros((7, 9, 3)))
    (pairs / "masks" / "2.png").write_bytes((pairs / "masks" / "2.png").read_bytes()[:60])
    (pairs / "images" / "3.jpg").write_bytes(b"no image")
    write(pairs / "masks" / "4.png", np.zeros((10, 10)))
    write(pairs / "masks" / "5.png", np.zeros((12, 9)))
    for _ in range(2):
        assert run(pairs).num_samples == 4
        assert (pairs / "out" / "train-rejected.txt").read_text().splitlines() == [
            "0.png\tthe mask has 6 x 9 pixels, but its image 9 x 6; masks are for the image as its EXIF data rotate it",
            "1.png\tthe mask is RGB, not palette indices or grey values that are class ids",
            "2.png\tthe mask is truncated or damaged",
            "3.jpg\tdoes not contain a PNG, JPEG or WebP image",
            "4.png\tthe mask has 10 x 10 pixels, but its image 9 x 10",
            "5.png\tthe mask has 9 x 12 pixels, but its image 9 x 11",
        ]
        told = capsys.readouterr().err
        assert (
            "4 images with masks imported\n"
            "skipped: 2: the mask has N x N pixels, but its image N x N: 4.png, 5.png\n" in told
        )


def test_what_was_repaired_is_no_longer_named(pairs: Path) -> None:
    mask = (pairs / "masks" / "0.png").read_bytes()
    (pairs / "masks" / "0.png").write_bytes(mask[:-20])
    assert run(pairs).num_samples == 9
    (pairs / "masks" / "0.png").write_bytes(mask)
    for path in (pairs / "out").glob("train-*.tar"):
        path.unlink()
    assert run(pairs).num_samples == 10
    assert not (pairs / "out" / "train-rejected.txt").exists()


def test_too_few_names_are_an_error_that_tells_the_ids(pairs: Path) -> None:
    with pytest.raises(
        DataError, match=r"masks/\d.png: found the id 2, but --classes names 2, 0 to 1; name all"
    ) as bad:
        run(pairs, classes="sky,grass")
    assert "--remap 0-1=0" in str(bad.value)
    assert not list((pairs / "out").glob("*.tar"))
    assert run(pairs).num_samples == 10, "with the name that was missing, it goes on"
    with pytest.raises(DataError, match=r"found shards whose mask classes are .*, not sky, grass; give the same"):
        run(pairs, classes="sky,grass", prefix="few")
    assert run(pairs, classes=NAMES, prefix="few", remap="0-1=0").num_samples == 20, "no shard was made without it"


def test_splits_are_made_one_by_one(pairs: Path) -> None:
    run(pairs)
    index = run(pairs, prefix="val", samples_per_shard=5)
    assert index.names == ["train-000000.tar", "val-000000.tar", "val-000001.tar"]


def test_a_share_goes_to_validation(pairs: Path) -> None:
    index = run(pairs, val="0.3")
    assert index.names == ["train-000000.tar", "val-000000.tar"]
    assert list(index.counts) == [7, 3]
    assert run(pairs, val="0.3").digest == index.digest


def test_nothing_usable_is_refused(pairs: Path) -> None:
    for number in range(10):
        write(pairs / "masks" / f"{number}.png", np.zeros((3, 3)))
    with pytest.raises(DataError, match="none of the 10 images can be used"):
        run(pairs)
