from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.shards import group
from pipeline.errors import DataError
from pipeline.images.decode import read_header
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make import make
from pipeline.shards.named_sets import named_set
from pipeline.shards.samples import shard_samples

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 27, "name": "bag"}]
PERSONS = [{"id": 1, "name": "person", "keypoints": ["nose", "foot"]}]
WIDTH, HEIGHT = 24, 16

Write = Callable[..., Path]


def box(image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, "area": 4, "iscrowd": 0, **more}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an annotation file of six images; the images are there already."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images = [{"id": 10 + n, "file_name": f"{n:06d}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(6)]
    for image in images:
        cv2.imwrite(str(tmp_path / "images" / str(image["file_name"])), rng.integers(256, size=(HEIGHT, WIDTH, 3)))

    def write(name: str, annotations: list[dict[str, Any]], **entries: Any) -> Path:
        path = tmp_path / f"{name}.json"
        content = {"images": images, "categories": CATEGORIES, "annotations": annotations} | entries
        path.write_text(json.dumps(content))
        return path

    return write


def run(folder: Path, *annotations: Path, out: str = "out", **options: Any) -> DatasetIndex:
    settings = {"images": folder / "images", "annotations": annotations, "workers": 1, **options}
    return make("coco", folder / out, **settings)


def samples(index: DatasetIndex, prefix: str = "") -> dict[str, dict[str, bytes]]:
    """Members by the name of the image."""
    shards = [shard for shard in index.shards if shard.url.rpartition("/")[2].startswith(prefix)]
    return {
        key.partition("-")[2]: {name: bytes(data) for name, data in (members or {}).items()}
        for shard in shards
        for _, key, members, _ in shard_samples(shard)
    }


def test_files_are_merged_into_one_sample_per_image(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = [5.5, 5.5, 2, 0, 0, 0]
    instances = write("instances", [box(10, 1, [2, 2, 8, 8], id=1), box(10, 27, [0, 0, 4, 4], id=2)])
    persons = write("persons", [box(10, 1, [2, 2, 8, 8], id=1, keypoints=points, num_keypoints=1)], categories=PERSONS)
    spoken = [{"image_id": 10, "id": n, "caption": text} for n, text in enumerate(("a  man\nwaits ", "a bag", " "))]
    captions = write("captions", spoken, categories=None)
    index = run(tmp_path, instances, persons, captions, samples_per_shard=4)
    assert index.counts.tolist() == [4, 2]
    assert index.classes == {"boxes": ["person", "bag"], "keypoints": ["nose", "foot"]}
    assert index.totals["keypoints"]["instances"] == 1
    assert (tmp_path / "out" / "classes.txt").read_text() == "person\nbag\n"
    found = samples(index)
    assert found.keys() == {f"{n:06d}" for n in range(6)}
    for name, members in found.items():
        assert members["jpg"] == (tmp_path / "images" / f"{name}.jpg").read_bytes()
    described = json.loads(found["000000"]["json"])
    assert {key: described[key] for key in ("width", "height", "image_id", "file_name")} == {
        "width": WIDTH,
        "height": HEIGHT,
        "image_id": 10,
        "file_name": "000000.jpg",
    }
    first, second = described["annotations"]
    assert first["keypoints"] == points
    assert (first["category"], first["bbox"], second["category_id"]) == ("person", [2, 2, 8, 8], 27)
    assert found["000000"]["txt"] == b"a man waits\na bag"
    assert json.loads(found["000001"]["json"])["annotations"] == []
    assert "txt" not in found["000001"]
    told = capsys.readouterr().err
    assert "6 images imported, 5 of them without annotations\n" in told
    assert "skipped: 1: empty captions: captions.json annotations[2]\n" in told
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert run(tmp_path, instances, persons, captions, samples_per_shard=4).digest == index.digest
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    write("instances", [])
    with pytest.raises(DataError, match="are older than their source"):
        run(tmp_path, instances, persons, captions, samples_per_shard=4)


def test_a_run_that_was_cut_short_goes_on_with_the_same_bytes(write: Write, tmp_path: Path) -> None:
    path = write("instances", [box(10, 1, [2, 2, 8, 8])])
    run(tmp_path, path, samples_per_shard=2)
    whole = {tar.name: tar.read_bytes() for tar in (tmp_path / "out").glob("*.tar")}
    (tmp_path / "out" / "train-000001.tar").unlink()
    run(tmp_path, path, samples_per_shard=2)
    assert {tar.name: tar.read_bytes() for tar in (tmp_path / "out").glob("*.tar")} == whole


def test_splits_by_a_share_or_by_names(write: Write, tmp_path: Path) -> None:
    path = write("instances", [box(10, 1, [2, 2, 8, 8])])
    index = run(tmp_path, path, val="0.34")
    assert len(samples(index, "val")) == 2
    assert len(samples(index, "train")) == 4
    assert samples(run(tmp_path, path, val="0.34", out="again")) == samples(index)
    assert samples(run(tmp_path, path, val="0.34", out="other", seed=1), "val").keys() != samples(index, "val").keys()
    names = tmp_path / "val.txt"
    names.write_text("000003\nsome/000005.jpg\n")
    with pytest.raises(DataError, match=r"lists some/000005.jpg, which are not among the images"):
        run(tmp_path, path, val=str(names), out="named")
    names.write_text("000003\n000005.jpg\n")
    assert samples(run(tmp_path, path, val=str(names), out="named"), "val").keys() == {"000003", "000005"}
    with pytest.raises(DataError, match=r"--val 0.001: would take 0 of 6 images"):
        run(tmp_path, path, val="0.001", out="none")
    with pytest.raises(DataError, match=r"--val 1.5: neither a share between 0 and 1 nor a readable file"):
        run(tmp_path, path, val="1.5", out="none")


def test_missing_images_are_named_and_too_many_are_an_error(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("instances", [box(10, 1, [2, 2, 8, 8])])
    (tmp_path / "images" / "000004.jpg").rename(tmp_path / "images" / "other.jpg")
    with pytest.raises(
        DataError,
        match=r"missing 1 of the 6 images that the annotations list, such as 000004.jpg; correct --images, or",
    ):
        run(tmp_path, path)
    assert run(tmp_path, path, most_missing=0.2).num_samples == 5
    told = capsys.readouterr().err
    assert "skipped: 1: images that do not exist: 000004.jpg\n" in told
    assert "skipped: 1: images that no annotation file lists: other.jpg\n" in told
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="missing 6 of the 6 images"):
        run(tmp_path, path, out="none", most_missing=0.9)


def test_file_names_may_hold_the_folder_that_is_named(write: Write, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "train2017/000000.jpg"}]
    found = samples(run(tmp_path, write("instances", [box(1, 1, [2, 2, 8, 8])], images=images)))
    assert json.loads(found["000000"]["json"])["width"] == WIDTH, "of the image, where the file does not say it"
    images.append({"id": 2, "file_name": "val2017/000000.jpg"})
    with pytest.raises(DataError, match=r"are both 000000.jpg below --images; give the parent folder"):
        run(tmp_path, write("instances", [], images=images), out="both")


def test_bad_boxes_cost_no_image(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [
        box(10, 1, [2, 2, 0, 8]),
        box(10, 1, [30, 2, 4, 8]),
        box(10, 1, [1, 2, 3]),
        box(99, 1, [2, 2, 8, 8]),
        box(10, 1, [2, 2, 8, 8], area=-1),
        box(10, 1, [2, 2, 8, 8], iscrowd="no"),
        box(10, 1, [2, 2, 10**400, 8]),
        box(10, 1, [2, 2, 8, 8]),
    ]
    found = samples(run(tmp_path, write("instances", bad)))
    assert [one["bbox"] for one in json.loads(found["000000"]["json"])["annotations"]] == [[2, 2, 8, 8]]
    told = capsys.readouterr().err
    for why, *numbers in (
        ("annotations whose bbox has no area", 0),
        ("annotations whose bbox is outside the image", 1),
        ("annotations without a bbox of four numbers", 2, 6),
        ("annotations for images that their file does not list", 3),
        ("annotations whose area is not a number from 0 up", 4),
        ("annotations whose iscrowd is not a number from 0 up", 5),
    ):
        examples = ", ".join(f"instances.json annotations[{number}]" for number in numbers)
        assert f"skipped: {len(numbers)}: {why}: {examples}\n" in told


def test_bad_keypoints_cost_neither_image_nor_box(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_points = [
        [1, 1, 2],
        [1, 1, 3, 2, 2, 2],
        [1, 1, 2, None, 2, 2],
        "x",
        [1, 1, 2, 10**400, 2, 2],
        [1, 1, 2, 0, 0, 0],
    ]
    persons = [box(10 + n, 1, [2, 2, 8, 8], keypoints=points) for n, points in enumerate(all_points)]
    index = run(tmp_path, write("persons", persons, categories=PERSONS))
    assert index.totals["boxes"]["boxes"] == 6
    assert index.totals["keypoints"]["instances"] == 1
    told = capsys.readouterr().err
    assert "skipped: 1: keypoints of another number than their category lists (their boxes are imported)" in told
    assert "skipped: 4: keypoints that are not [x, y, v, ...] with v 0, 1 or 2 (their boxes are imported)" in told


def test_unusable_images_are_listed(write: Write, tmp_path: Path) -> None:
    path = write("instances", [box(10, 1, [2, 2, 8, 8])])
    (tmp_path / "images" / "000001.jpg").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "images" / "000002.jpg"), np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    assert run(tmp_path, path).num_samples == 4
    assert (tmp_path / "out" / "train-rejected.txt").read_text().splitlines() == [
        "000001.jpg\tdoes not contain a PNG, JPEG or WebP image",
        "000002.jpg\tthe annotations are for 24 x 16 pixels, but the image has 16 x 24; annotations are for the image "
        "as its EXIF data rotate it",
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"annotations": [box(10, 5, [2, 2, 8, 8])]},
            r"annotations\[0\] has the category id 5, which is not",
        ),
        (
            {"images": [{"id": 10, "file_name": "000000.jpg", "width": 30, "height": 9}]},
            r"second.json: 000000.jpg has 30 x 9 pixels, but 24 x 16 in .*first.json; use files of the same images",
        ),
        ({"categories": [{"id": 27, "name": "hat"}]}, r"its category 27 is 'hat', but 'bag' in .*first.json"),
        ({"categories": [{"id": 28, "name": "bag"}]}, r"the category 'bag' has the id 28, but 27 in .*first.json"),
        ({"images": [{"id": 1, "file_name": n} for n in "ab"]}, r"a and b share the id 1"),
        ({"images": [{"id": 1}]}, r"images\[0\] has no id and file_name"),
        ({"annotations": None}, r"has no list 'annotations'"),
        ({"images": [{"id": [1], "file_name": "a"}]}, r"images\[0\] has the id \[1\], not a number or text"),
        ({"images": [{"id": 1, "file_name": "a", "width": "x"}]}, r'images\[0\] has the width "x", not a number'),
        ({"annotations": [box(10, [1], [2, 2, 8, 8])]}, r"annotations\[0\] has the category_id \[1\], not a whole"),
        ({"annotations": [box([10], 1, [2, 2, 8, 8])]}, r"annotations\[0\] has the image_id \[10\], not a number"),
        ({"categories": [{"id": "1", "name": "cat"}]}, r'categories\[0\] has the id "1", not a whole number'),
        ({"categories": [{"id": 1, "name": "person", "keypoints": 5}]}, r"has the keypoints 5, not a list"),
    ],
)
def test_files_that_contradict_are_refused(write: Write, tmp_path: Path, second: dict[str, Any], message: str) -> None:
    first = write("first", [box(10, 1, [2, 2, 8, 8])])
    with pytest.raises(DataError, match=message):
        run(tmp_path, first, write("second", **{"annotations": [], **second}))


def test_what_is_no_annotation_file_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DataError, match=r"text.json: not valid JSON"):
        run(tmp_path, tmp_path / "text.json")
    with pytest.raises(DataError, match=r"none.json: cannot be read"):
        run(tmp_path, tmp_path / "none.json")


def test_maps_of_stuff_come_along(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("instances", [box(10, 1, [2, 2, 8, 8])])
    (tmp_path / "stuff").mkdir()
    for n in range(4):
        ids = np.full((HEIGHT, WIDTH), n % 2, np.uint8)
        ids[0] = 255
        cv2.imwrite(str(tmp_path / "stuff" / f"{n:06d}.png"), ids if n < 3 else ids[1:])
    with pytest.raises(DataError, match="--stuff and --stuff-classes: give both"):
        run(tmp_path, path, stuff=tmp_path / "stuff")
    with pytest.raises(DataError, match=r"found the id 1, but --stuff-classes names 1, 0 to 0; name all classes"):
        run(tmp_path, path, stuff=tmp_path / "stuff", stuff_classes="sky,")
    index = run(tmp_path, path, stuff=tmp_path / "stuff", stuff_classes="sky,grass")
    assert index.classes == {"boxes": ["person", "bag"], "mask": ["sky", "grass"]}
    found = samples(index)
    assert found.keys() == {f"{n:06d}" for n in (0, 1, 2, 4, 5)}
    for n in range(3):
        assert found[f"{n:06d}"]["seg.png"] == (tmp_path / "stuff" / f"{n:06d}.png").read_bytes()
    told = capsys.readouterr().err
    assert (
        "2: class maps of stuff that do not exist (their images are imported without): 000004.jpg, 000005.jpg\n" in told
    )
    assert "skipped: 1: the mask has N x N pixels, but its image N x N: 000003.png\n" in told


def test_the_command_takes_several_files(write: Write, tmp_path: Path) -> None:
    files = [write("instances", [box(10, 1, [2, 2, 8, 8])]), write("captions", [{"image_id": 10, "caption": "a man"}])]
    arguments = ["make", "coco", "--out", str(tmp_path / "out"), "--images", str(tmp_path / "images"), "--workers", "1"]
    result = CliRunner().invoke(group, [*arguments, *(word for path in files for word in ("--annotations", str(path)))])
    assert result.exit_code == 0, result.output
    assert "1 shards, 6 samples" in result.output
    assert CliRunner().invoke(group, arguments).exit_code == 2


def scenes_as_coco(index: DatasetIndex, folder: Path) -> list[Path]:
    """Images, class maps, and the annotation files that COCO would have of a data set of scenes."""
    images, annotations, captions, categories = [], [], [], {}
    for number, (key, members) in enumerate(samples(index).items(), 1):
        for extension, place in (("jpg", "images"), ("seg.png", "stuff")):
            path = folder / place / f"{key}.{extension.rpartition('.')[2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(members[extension])
        described = json.loads(members["json"])
        size = {name: described[name] for name in ("width", "height")}
        images.append({"id": number, "file_name": f"{key}.jpg", **size})
        captions.append({"id": number, "image_id": number, "caption": described["caption"]})
        for one in described["annotations"]:
            categories[one["category_id"]] = one.pop("category")
            annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
    named = [{"id": number, "name": name} for number, name in categories.items()]
    files = {
        "instances": {"images": images, "annotations": annotations, "categories": named},
        "captions": {"images": images, "annotations": captions},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [folder / f"{name}.json" for name in files]


def boxes_of(index: DatasetIndex) -> dict[str, list[tuple[str, list[float], float]]]:
    """The boxes of each scene as training reads them: (class, corners, area)."""
    (target,) = (one for one in named_set(index.url).targets(index) if one.kind == "boxes")
    names = index.classes["boxes"]
    found = {}
    for key, members in samples(index).items():
        header = read_header(members["jpg"])
        value = target.decode(members, (header.height, header.width))
        rows = zip(value.labels.tolist(), value.corners.tolist(), value.areas.tolist(), strict=True)
        found[key] = [(names[label], corners, area) for label, corners, area in rows]
    return found


def test_scenes_survive_the_way_through_coco_files(items_src: Path, tmp_path: Path) -> None:
    scenes = make("fashion-scenes", tmp_path / "scenes", train=12, val=0, test=0, src=items_src, workers=1)
    files = scenes_as_coco(scenes, tmp_path)
    names = ",".join(scenes.classes["mask"])
    index = run(tmp_path, *files, stuff=tmp_path / "stuff", stuff_classes=names)
    for command in (["verify"], ["stats"], ["preview", "--out", str(tmp_path / "sheet.png")]):
        result = CliRunner().invoke(group, [*command, str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
    assert boxes_of(index) == boxes_of(scenes)
    before, after = samples(scenes), samples(index)
    assert len(after) == len(before) == 12
    for key, members in before.items():
        found = after[f"{key}"]
        for extension in ("jpg", "seg.png", "txt"):
            assert found[extension] == members[extension], extension
        header, described, expected = read_header(found["jpg"]), json.loads(found["json"]), json.loads(members["json"])
        assert (described["height"], described["width"]) == (header.height, header.width)
        for one in described["annotations"]:
            del one["id"]
        assert described["annotations"] == expected["annotations"]
