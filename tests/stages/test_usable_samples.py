from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.config.data import DatasetConfig
from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.stages.context import require_class_names
from pipeline.stages.usable_samples import usable_warning
from pipeline.train.job import Dataset


def dataset(folder: Path, *samples: dict[str, bytes], classes: list[str] | None = None, **config: object) -> Dataset:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, members in enumerate(samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index = build_index(str(folder), classes=classes, workers=1)
    return Dataset(DatasetConfig(shards=str(folder), **config), index)


KINDS = ["class_id"]
WHOLE = {"png": b"x", "cls": b"1"}


def test_all_samples_with_both_are_nothing_to_speak_of(tmp_path: Path) -> None:
    assert require_class_names("t", sound := dataset(tmp_path, WHOLE), KINDS) == {"class_id": ["0", "1"]}
    assert usable_warning("t", sound, KINDS) is None


def test_some_without_are_a_warning(tmp_path: Path) -> None:
    some = dataset(tmp_path, WHOLE, {"png": b"x"}, {"cls": b"0"})
    assert require_class_names("t", some, KINDS) == {"class_id": ["0", "1"]}
    assert usable_warning("t", some, KINDS) == (
        "datasets.t: 2 of 3 samples cannot be used: 1 without image (png;jpg;jpeg;webp), 1 without class_id (cls); "
        "training skips them"
    )


def test_none_with_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^datasets\.t: .*2 of 2 samples cannot be used: 1 without image .*image_key"):
        require_class_names("t", dataset(tmp_path, {"png": b"x"}, {"cls": b"0"}), KINDS)


def test_no_samples_are_refused_even_where_the_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"datasets\.t: .* has no samples"):
        require_class_names("t", dataset(tmp_path, classes=["a", "b"]), KINDS)


def test_labels_that_the_index_has_not_read_need_names(tmp_path: Path) -> None:
    samples = {**WHOLE, "other": b"5"}
    with pytest.raises(DataError, match=r"indexed with the class_id member 'cls'.* --target class_id=other`, or name"):
        require_class_names("t", dataset(tmp_path, samples, classes=["a", "b"], targets={"class_id": "other"}), KINDS)
    with pytest.raises(DataError, match=r"indexed without mask, so the classes of 'other' are not known"):
        require_class_names("t", dataset(tmp_path, samples, targets={"mask": "other"}), ["mask"])
    named = dataset(tmp_path, samples, targets={"class_id": "other"})
    config = named.config.model_copy(update={"classes": ["a"]})  # fewer than the labels under the index's key
    assert require_class_names("t", Dataset(config, named.index), KINDS) == {"class_id": ["a"]}
    assert "reads png;jpg;jpeg;webp and other, but its index looked for png;jpg;jpeg;webp and cls" in str(
        usable_warning("t", Dataset(config, named.index), KINDS)
    )


def test_keys_that_the_index_was_made_for_are_the_default(tmp_path: Path) -> None:
    found = dataset(tmp_path, {"img.tif": b"x", "cls": b"0"}, {"img.tif": b"x", "cls": b"1"})
    assert found.index.keys.image == ("img.tif",)
    assert require_class_names("t", found, KINDS) == {"class_id": ["0", "1"]}
    assert usable_warning("t", found, KINDS) is None


def test_labels_that_are_identifiers_are_refused_before_each_gets_a_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^datasets\.t: .* has labels up to 900000000000000000, which look like ident"):
        require_class_names("t", dataset(tmp_path, {"png": b"x", "cls": b"900000000000000000"}), KINDS)


def test_data_without_labels_serve_tasks_that_need_none(tmp_path: Path) -> None:
    found = dataset(tmp_path, {"png": b"x"}, {"png": b"x", "txt": b"x"})
    assert require_class_names("t", found, []) == {}
    assert usable_warning("t", found, []) is None
    with pytest.raises(
        DataError,
        match=r"has no class_id in its index; the samples have the members png, txt; .*--target",
    ):
        require_class_names("t", found, KINDS)


def test_nobody_names_the_classes_of_a_mask(tmp_path: Path) -> None:
    found = dataset(tmp_path, {"png": b"x", "seg.png": b"x"})
    with pytest.raises(DataError, match=r"found no class names for the mask .*--classes mask=FILE"):
        require_class_names("t", found, ["mask"])
    config = found.config.model_copy(update={"classes": {"mask": ["wall", "door"]}})
    assert require_class_names("t", Dataset(config, found.index), ["mask"]) == {"mask": ["wall", "door"]}
